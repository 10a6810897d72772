//! Outputs that cannot be written are found before anything is read or computed. Further tests cover unusual
//! file systems, pipes as outputs, names that are not UTF-8, and output folders that vanish.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::Stdio;

use crate::workbench::Bench;

#[test]
fn an_output_that_cannot_be_written_is_found_before_the_work() {
    let bench = Bench::new();
    bench.run("eval --model model --input pairs.jsonl --bootstrap 0 --output a.json").ok();
    let run = "--model model --train-file pairs.jsonl --max-steps 1";
    bench.run(&format!("dpo --output-dir out {run}")).ok();
    let before = bench.listing();
    // Every input is missing, so a command that reads an input first would name the input instead of the
    // output.
    for words in [
        "score --model none --input none.jsonl --output /proc/mapl.out",
        "eval --model none --input none.jsonl --output /proc/mapl.out",
        "compare model qwen --input none.jsonl --output /proc/mapl.out",
        "data build --input none.jsonl --output /proc/mapl.out",
        "data build --input none.jsonl --output o.jsonl --report /proc/mapl.out",
        "data check none.jsonl --output /proc/mapl.out",
        "bench --device cpu --compare none.csv --output /proc/mapl.out",
        "report out --output /proc/mapl.out",
    ] {
        bench.run(words).fails(1, &["cannot write /proc/mapl.out"]);
    }
    for words in [
        "tokenizer --input none.jsonl --vocab-size 300 --output-dir /proc/mapl.out",
        "init --preset quickstart --tokenizer none --output-dir /proc/mapl.out",
        "quickstart --output-dir /proc/mapl.out",
        "dpo --model none --train-file none.jsonl --output-dir /proc/mapl.out",
        "study dpo --device cpu --model none --train-file none.jsonl --output-dir o --study-dir /proc/mapl.out",
        "study bench --device cpu --study-dir /proc/mapl.out",
    ] {
        bench.run(words).fails(1, &["cannot create /proc/mapl.out"]);
    }
    bench.write("sweep.toml", "method = \"sft\"\n[flags]\nmodel = \"none\"\n[vary]\nseed = [1, 2]\n");
    let all = bench.listing();
    bench.run("study sweep sweep.toml --output-dir /proc/mapl.out").fails(1, &["cannot create /proc/mapl.out"]);
    bench
        .bash("ln -s nowhere link; $MAPL score --model none --input none --output link")
        .fails(1, &["cannot write link"]);
    assert_eq!(all.len(), before.len() + 1);
    assert_eq!(bench.listing().len(), before.len() + 2);
}

#[test]
fn a_pipe_as_output_of_a_benchmark_stays_a_pipe() {
    let bench = Bench::new();
    bench
        .bash(
            "mkfifo rows; cat rows > got.csv & $MAPL bench --device cpu --model tiny --op norm_fwd --repeats 1 \
             --passes 1 --seconds 0 --rotate-mib 1 --output rows && wait && test -p rows",
        )
        .ok();
    let text = String::from_utf8(bench.bytes("got.csv")).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("schema,")).count(), 1, "{text}");
    assert!(text.lines().any(|line| line.contains("norm_fwd")), "{text}");
}

#[test]
fn pipes_named_like_files_of_a_run_are_replaced() {
    let bench = Bench::new();
    let run = "--model model --train-file pairs.jsonl --eval-file pairs.jsonl --max-steps 1 --overwrite-output-dir";
    let of_run = ["run.json", "metrics.jsonl", "eval_scores.jsonl", "trainer_state.json", "report.html"];
    let of_study = ["study.json", "hw.jsonl", "report.html"];
    bench
        .bash(&format!(
            "mkdir out st; cd out; mkfifo {}; cd ../st; mkfifo {}; cd ..; $MAPL study dpo --device cpu {run} --output-dir out \
             --study-dir st",
            of_run.join(" "),
            of_study.join(" ")
        ))
        .ok();
    for (folder, names) in [("out", &of_run[..]), ("st", &of_study)] {
        names.iter().for_each(|name| assert!(bench.at(folder).join(name).is_file(), "{folder}/{name}"));
    }
}

#[test]
fn a_cache_folder_that_cannot_be_made_is_a_warning() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file pairs.jsonl --max-steps 2 --precompute-ref-log-probs";
    bench.run(&format!("{run} --output-dir a --ref-cache-dir cache")).ok();
    let done = bench.run(&format!("{run} --output-dir b --ref-cache-dir /proc/mapl/cache"));
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.err.contains("warning: cannot create /proc/mapl/cache"), "{}", done.err);
    assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    assert!(bench.bytes("a/model.safetensors") == bench.bytes("b/model.safetensors"));
}

/// Root can open every folder, so the test needs root to run as a different user; otherwise it is skipped.
#[test]
fn a_folder_of_mode_711_above_the_output_is_a_warning() {
    let bench = Bench::new();
    let guard = "[ $(id -u) = 0 ] && command -v setpriv >/dev/null && cp $MAPL mapl || exit 77; chmod 755 . mapl; \
                 mkdir -p above/out && chmod 711 above && chown 65534 above/out || exit 77; chmod -R a+rX model";
    let as_other = "setpriv --reuid=65534 --clear-groups";
    let done = bench.bash(&format!(
        "{guard}; {as_other} ./mapl env >/dev/null 2>&1 || exit 77; {as_other} ./mapl dpo --model model --train-file \
         pairs.jsonl --output-dir above/out --max-steps 2 --save-steps 1"
    ));
    if done.code == Some(77) {
        let why = "needs root and setpriv; a test of files.rs covers the code";
        return drop(writeln!(std::io::stderr(), "SKIPPED: {why}"));
    }
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_eq!(done.err.matches("warning: cannot sync above").count(), 1, "{}", done.err);
}

#[test]
fn names_that_are_not_utf_8_are_refused_before_the_work_or_used() {
    let bench = Bench::new();
    bench.bash(r#"n=$'n\xff'; cp -r model $n; cp pairs.jsonl $n.jsonl; mkdir $n.folder"#).ok();
    let before = bench.listing();
    for words in [
        "dpo --model $n --train-file pairs.jsonl --output-dir out",
        "dpo --model model --train-file $n.jsonl --output-dir out",
        "reward --model model --train-file pairs.jsonl --output-dir $n.out",
        "study sft --model model --train-file pairs.jsonl --output-dir out --study-dir $n.study",
        "score --model $n --input pairs.jsonl --output s.jsonl",
        "eval --model $n --input pairs.jsonl",
        "compare model $n --input pairs.jsonl",
        "data check $n.jsonl",
        "quickstart --output-dir $n.quick",
    ] {
        let done = bench.bash(&format!(
            r#"n=$'n\xff'; $MAPL {words} 2> err; code=$?; iconv -c -t ascii err >&2; rm err; exit $code"#
        ));
        done.fails(2, &["this command records its arguments as UTF-8"]);
        assert_eq!(bench.listing(), before);
    }
    bench
        .bash(r#"n=$'n\xff'; $MAPL data build --input $n.jsonl --output $n.built > /dev/null && test -s $n.built"#)
        .ok();
    bench.bash(r#"n=$'n\xff'; $MAPL tokenizer --input $n.jsonl --vocab-size 300 --output-dir $n.tok > /dev/null"#).ok();
    // The manifest also records the working folder, whose name is not UTF-8 here.
    let mut command =
        bench.command("dpo --model ../model --train-file ../pairs.jsonl --output-dir out --max-steps 2 --save-steps 1");
    command.current_dir(bench.path().join(OsStr::from_bytes(b"n\xff.folder")));
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    command.args(["--resume-from-checkpoint", "out/checkpoint-1"]);
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    let name = bench.path().join(OsStr::from_bytes(b"model/additional_chat_templates/\xff.jinja"));
    std::fs::create_dir(bench.at("model/additional_chat_templates")).unwrap();
    std::fs::write(name, "x").unwrap();
    bench
        .run("dpo --model model --train-file pairs.jsonl --output-dir out")
        .fails(6, &["has a name that is not UTF-8"]);
}

/// Starts a run that would take hours, calls `act` after its first step, and returns its exit code and
/// stderr after SIGTERM.
fn stopped_after(bench: &Bench, words: &str, act: impl FnOnce()) -> (Option<i32>, String) {
    let mut child = bench.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
    act();
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
    lines.for_each(drop);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (child.wait().unwrap().code(), err)
}

#[test]
fn a_removed_output_folder_is_made_again_with_a_warning_and_a_replaced_one_is_left_alone() {
    let bench = Bench::new();
    let run = |out: &str| {
        format!(
            "dpo --model model --train-file pairs.jsonl --output-dir {out} --lr-scheduler-type constant --max-steps 1000000"
        )
    };
    let out = bench.at("out");
    let (code, err) = stopped_after(&bench, &run("out"), || std::fs::remove_dir_all(&out).unwrap());
    assert_eq!(code, Some(143), "{err}");
    assert!(err.contains("warning: the output folder out was removed; it was created again"), "{err}");
    let (step, _) = mapl::train::checkpoint::list(&out).pop().unwrap();
    let events = bench.metrics("out", "event");
    assert!(events.iter().any(|event| event["event"] == "output folder recreated"), "{events:?}");
    assert!(
        std::fs::read_dir(&out)
            .unwrap()
            .any(|file| { file.unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents") })
    );
    bench
        .run(
            &run("out")
                .replace("1000000", &(step + 1).to_string())
                .replace("--max", "--resume-from-checkpoint true --max"),
        )
        .ok();

    let (code, err) = stopped_after(&bench, &run("other"), || {
        std::fs::rename(bench.at("other"), bench.at("moved")).unwrap();
        std::fs::create_dir(bench.at("other")).unwrap();
        std::fs::write(bench.at("other/run.lock"), "1\n").unwrap();
        let file = std::fs::File::open(bench.at("other/run.lock")).unwrap();
        file.lock().unwrap();
        // The lock is held until this process ends.
        std::mem::forget(file);
    });
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("error: the output folder other was replaced, and another run writes into it"), "{err}");
    assert!(mapl::train::checkpoint::list(&bench.at("other")).is_empty());
}
