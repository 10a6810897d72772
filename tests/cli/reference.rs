//! `--precompute-ref-log-probs`: a run with stored log-probs equals the run with an online
//! reference, byte for byte.

use std::path::PathBuf;

use mapl::train::frozen::file::{CacheFile, Entries, Found};

use crate::workbench::{Bench, Done};

const CACHED: &str = "--precompute-ref-log-probs";

fn cached(bench: &Bench, words: &str) -> Done {
    bench.run_with(words, ("MAPL_CACHE_DIR", bench.at("cache").to_str().unwrap()))
}

/// Counts of cached and of computed sequences, from every output line that reports them.
fn counts(out: &str) -> Vec<(usize, usize)> {
    let numbers = |line: &str| -> Vec<usize> { line.split(' ').filter_map(|word| word.parse().ok()).collect() };
    let lines = out.lines().filter(|line| line.contains("sequences from the cache,"));
    lines.map(|line| numbers(line.rsplit("  ").next().unwrap())).map(|n| (n[n.len() - 2], n[n.len() - 1])).collect()
}

fn same(bench: &Bench, expected: &str, run: &str) {
    for kind in ["train", "eval"] {
        assert_eq!(bench.metrics(expected, kind), bench.metrics(run, kind), "{run}");
    }
    let weights = |run: &str| bench.bytes(&format!("{run}/model.safetensors"));
    assert!(weights(expected) == weights(run), "weights of {expected} and {run} differ");
}

/// Returns the path of the only cache file of a bench.
fn cache_file(bench: &Bench) -> PathBuf {
    let files: Vec<_> = std::fs::read_dir(bench.at("cache/reference")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn dpo(output: &str, rest: &str) -> String {
    format!("dpo --model model --train-file groups.jsonl --learning-rate 1e-3 --output-dir {output} {rest}")
}

#[test]
fn stored_log_probs_change_no_byte_of_a_run() {
    let bench = Bench::new();
    let rest = "--eval-file pairs.jsonl --eval-steps 2 --max-steps 5 --per-device-train-batch-size 3 \
                --gradient-accumulation-steps 2";
    bench.run(&dpo("online", rest)).ok();
    assert!(bench.metrics("online", "eval").len() >= 3);
    let mut total = 0;
    for (i, batch) in ["1", "3", "8"].into_iter().enumerate() {
        let words = dpo(&format!("cached-{i}"), &format!("{rest} {CACHED} --precompute-ref-batch-size {batch}"));
        // Every iteration starts without a cache.
        std::fs::remove_dir_all(bench.at("cache")).or_else(|e| if i == 0 { Ok(()) } else { Err(e) }).unwrap();
        let done = cached(&bench, &words).ok();
        assert!(done.out.contains("identity check passed"), "{}", done.out);
        assert!(done.out.contains(cache_file(&bench).to_str().unwrap()), "{}", done.out);
        let [(0, computed)] = counts(&done.out)[..] else { panic!("{}", done.out) };
        assert!(computed > 40);
        total = computed;
        same(&bench, "online", &format!("cached-{i}"));
    }
    let again = cached(&bench, &dpo("again", &format!("{rest} {CACHED}"))).ok();
    assert_eq!(counts(&again.out), [(total, 0)], "{}", again.out);
    same(&bench, "online", "again");

    // A run with a different loss and a subset of the data uses the same cache file. A different log-prob
    // reduction needs a different file.
    let rest = "--max-steps 1 --beta 0.7 --loss-type hinge --objective base --per-device-train-batch-size 8";
    bench.run(&dpo("online-part", rest)).ok();
    let part = cached(&bench, &dpo("part", &format!("{rest} {CACHED}"))).ok();
    let [(known, 0)] = counts(&part.out)[..] else { panic!("{}", part.out) };
    assert!(known < total);
    same(&bench, "online-part", "part");
    let mean = cached(&bench, &dpo("mean", &format!("{rest} {CACHED} --logp-reduce mean"))).ok();
    assert!(counts(&mean.out)[0].0 == 0 && !mean.err.contains("warning"));

    let quiet = cached(&bench, &dpo("quiet", &format!("{rest} {CACHED} --quiet"))).ok();
    assert!(quiet.out.starts_with("done: ") && quiet.out.lines().count() == 1, "{}", quiet.out);
    assert_eq!(quiet.err, "");
}

#[test]
fn stored_log_probs_of_another_reference_or_device_give_the_online_run() {
    let bench = Bench::new();
    let rows = String::from_utf8(bench.bytes("groups.jsonl")).unwrap();
    bench.write("two.jsonl", rows.lines().take(2).collect::<Vec<_>>().join("\n"));
    for (i, rest) in ["--ref-model qwen --max-steps 3", "--device reference --train-file two.jsonl --max-steps 2"]
        .into_iter()
        .enumerate()
    {
        let words = |output: &str, more: &str| {
            let train = if rest.contains("--train-file") { "" } else { "--train-file groups.jsonl" };
            format!("dpo --model model {train} --learning-rate 1e-3 --output-dir {output} {rest} {more}")
        };
        let (online, stored) = (format!("online-{i}"), format!("cached-{i}"));
        bench.run(&words(&online, "")).ok();
        let done = bench.run(&words(&stored, &format!("{CACHED} --ref-cache-dir here/{i}"))).ok();
        assert!(done.out.contains(&format!("here/{i}/")), "{}", done.out);
        assert_eq!(done.out.contains("identity check passed"), i == 1, "{}", done.out);
        same(&bench, &online, &stored);
    }
}

#[test]
fn redrawn_groups_have_their_new_sequences_computed() {
    let bench = Bench::new();
    let words = |output: &str, rest: &str| {
        format!(
            "dpo --model model --train-file pairs.jsonl --objective mapl --redraw epoch --k-max 1 --max-steps 7 \
             --per-device-train-batch-size 8 --learning-rate 1e-3 --save-steps 5 --output-dir {output} {rest}"
        )
    };
    bench.run(&words("online", "")).ok();
    let first = cached(&bench, &words("cached", CACHED)).ok();
    let lines = counts(&first.out);
    assert!(lines.len() == 3 && lines.iter().all(|&(_, computed)| computed > 0), "{}", first.out);
    assert!(lines[1].0 > 0, "the pairs themselves are cached");
    same(&bench, "online", "cached");
    let second = cached(&bench, &words("again", CACHED)).ok();
    assert!(counts(&second.out).iter().all(|&(_, computed)| computed == 0), "{}", second.out);
    same(&bench, "online", "again");
    // A run resumed in a later epoch uses that epoch's reference log-probs.
    let resumed = "--resume-from-checkpoint cached/checkpoint-5";
    let done = cached(&bench, &words("cached", &format!("{CACHED} {resumed}"))).ok();
    assert!(done.out.contains("resumed after step 5") && counts(&done.out).len() == 3, "{}", done.out);
    same(&bench, "online", "cached");
}

#[test]
fn runs_with_and_without_stored_log_probs_resume_each_other() {
    let bench = Bench::new();
    let rest = "--max-steps 6 --save-steps 3 --per-device-train-batch-size 4 --lr-scheduler-type linear";
    bench.run(&dpo("online", rest)).ok();
    cached(&bench, &dpo("cached", &format!("{rest} {CACHED}"))).ok();
    same(&bench, "online", "cached");
    for (name, from, more) in [("a", "online", CACHED), ("b", "cached", "")] {
        bench.copy(from, name);
        std::fs::remove_file(bench.at(&format!("{name}/model.safetensors"))).unwrap();
        let words = dpo(name, &format!("{rest} {more} --resume-from-checkpoint {name}/checkpoint-3"));
        let done = cached(&bench, &words).ok();
        assert!(done.out.contains("resumed after step 3"), "{}", done.out);
        assert_eq!(counts(&done.out).len(), usize::from(!more.is_empty()));
        same(&bench, "online", name);
    }
}

#[test]
fn a_damaged_cache_gives_one_warning_and_is_replaced() {
    let bench = Bench::new();
    let words = |output: &str| dpo(output, &format!("--max-steps 2 {CACHED}"));
    let first = cached(&bench, &words("first")).ok();
    let [(0, total)] = counts(&first.out)[..] else { panic!("{}", first.out) };
    let path = cache_file(&bench);
    let bytes = std::fs::read(&path).unwrap();
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    for (i, (damaged, why)) in
        [(&flipped[..], "checksum"), (&bytes[..50], "truncated"), (b"", "truncated")].into_iter().enumerate()
    {
        std::fs::write(&path, damaged).unwrap();
        let run = format!("damaged-{i}");
        let done = cached(&bench, &words(&run)).ok();
        let warnings: Vec<&str> = done.err.lines().filter(|line| line.starts_with("warning:")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(path.to_str().unwrap()), "{}", done.err);
        assert!(warnings[0].contains(why) && warnings[0].contains("computed again"), "{}", done.err);
        assert_eq!(counts(&done.out), [(0, total)]);
        same(&bench, "first", &run);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
    // Weights that were trained further are a different reference and cause no warning.
    let other = cached(&bench, &words("other").replace("--model model", "--model first")).ok();
    assert_eq!(counts(&other.out), [(0, total)]);
    assert!(!other.err.contains("warning"), "{}", other.err);
}

#[test]
fn wrong_stored_log_probs_fail_the_identity_check() {
    let bench = Bench::new();
    cached(&bench, &dpo("first", &format!("--max-steps 1 {CACHED}"))).ok();
    let path = cache_file(&bench);
    let bytes = std::fs::read(&path).unwrap();
    let file = CacheFile::new(path.parent().unwrap(), std::array::from_fn(|i| bytes[16 + i]), 4);
    let Found::Entries(entries) = file.read() else { panic!("{:?}", file.read()) };
    // Moves every entry by one f32 ulp and writes a correct checksum.
    let next = |x: f64| f64::from(f32::from_bits((x as f32).to_bits() + 1));
    file.merge(&entries.iter().map(|(&key, &x)| (key, next(x))).collect::<Entries>()).unwrap();
    let done = cached(&bench, &dpo("second", &format!("--max-steps 1 {CACHED}")));
    done.fails(1, &["identity check failed", path.to_str().unwrap()]);
    assert!(!bench.at("second/model.safetensors").exists());
}

#[test]
fn concurrent_runs_share_a_cache() {
    let bench = Bench::new();
    let words = |name: &str, file: &str| {
        format!(
            "dpo --model model --train-file {file} --max-steps 2 --output-dir {name} --ref-cache-dir shared {CACHED}"
        )
    };
    let start = |name: &str, file: &str| bench.command(&words(name, file)).output();
    std::thread::scope(|scope| {
        let runs: Vec<_> = ["groups.jsonl", "pairs.jsonl", "groups.jsonl"]
            .into_iter()
            .enumerate()
            .map(|(i, file)| scope.spawn(move || start(&format!("run-{i}"), file)))
            .collect();
        for run in runs {
            let output = run.join().unwrap().unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() && !err.contains("warning"), "{err}");
        }
    });
    same(&bench, "run-0", "run-2");
    for (i, file) in ["groups.jsonl", "pairs.jsonl"].into_iter().enumerate() {
        let done = bench.run(&words(&format!("after-{i}"), file)).ok();
        assert_eq!(counts(&done.out)[0].1, 0, "{}", done.out);
        same(&bench, &format!("run-{i}"), &format!("after-{i}"));
    }
}

#[test]
fn flags_without_effect_are_refused() {
    let bench = Bench::new();
    let run = |method: &str, rest: &str| {
        bench.run(&format!("{method} --model model --train-file groups.jsonl --output-dir out {rest}"))
    };
    for method in ["reward", "sft"] {
        run(method, CACHED).fails(2, &[CACHED, method]);
    }
    run("dpo", &format!("--ref-model none {CACHED}")).fails(2, &[CACHED, "--ref-model none"]);
    run("dpo", "--precompute_ref_batch_size 4").fails(2, &["--precompute-ref-batch-size", CACHED]);
    run("dpo", "--ref-cache-dir x").fails(2, &["--ref-cache-dir", CACHED]);
    run("dpo", &format!("{CACHED} --precompute-ref-batch-size 0")).fails(2, &["--precompute-ref-batch-size 0"]);
    run("dpo", &format!("{CACHED} --ref-cache-dir pairs.jsonl")).fails(2, &["pairs.jsonl is a file"]);
    let train = "dpo --model model --train-file groups.jsonl --output-dir warned --max-steps 1";
    let warned = bench.run(&format!("{train} {CACHED} --ref-cache-dir pairs.jsonl/x"));
    assert!(warned.code == Some(0) && warned.err.contains("warning: cannot create pairs.jsonl/x"), "{}", warned.err);
    let mut nowhere = bench.command(&format!("dpo --model model --train-file groups.jsonl --output-dir out {CACHED}"));
    for variable in ["HOME", "XDG_CACHE_HOME", "MAPL_CACHE_DIR"] {
        nowhere.env_remove(variable);
    }
    let output = nowhere.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--ref-cache-dir"));
    assert!(!bench.at("out").exists());
}
