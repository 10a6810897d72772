//! Checkpoints: contents, retention, and handling of damaged ones.

use std::path::Path;

use mapl::files::files_below;
use mapl::rng::Rng;
use mapl::train::checkpoint;

use crate::workbench::Bench;

fn sft(out: &str, rest: &str) -> String {
    format!(
        "sft --model model --train-file pairs.jsonl --output-dir {out} --quiet --per-device-train-batch-size 2 \
         --learning-rate 1e-3 {rest}"
    )
}

fn steps(out: &Path) -> Vec<u64> {
    checkpoint::list(out).into_iter().map(|(step, _)| step).collect()
}

/// Flips one bit of a file and returns the original bytes.
fn flip(path: &Path, bit: usize) -> Vec<u8> {
    let before = std::fs::read(path).unwrap();
    let mut bytes = before.clone();
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
    before
}

#[test]
fn a_flipped_bit_in_any_checkpoint_file_is_refused_by_file_name() {
    let bench = Bench::new();
    bench.run(&sft("out", "--max-steps 2 --save-steps 2")).ok();
    let folder = bench.at("out/checkpoint-2");
    checkpoint::verify(&folder).unwrap();
    let mut rng = Rng::keyed(4, &["bits"]);
    let files = files_below(&folder).unwrap();
    let names: Vec<String> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    for name in ["DONE", "model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "state.json"] {
        assert!(names.iter().any(|n| n == name), "no {name} in {names:?}");
    }
    for file in &files {
        let bits = 8 * std::fs::metadata(file).unwrap().len() as usize;
        let random: Vec<usize> = (0..20).map(|_| rng.below(bits)).collect();
        for bit in random.into_iter().chain([0, bits - 1]) {
            let before = flip(file, bit);
            let error = checkpoint::verify(&folder).unwrap_err();
            assert_eq!(error.exit_code(), 6);
            assert!(error.to_string().contains(&*file.to_string_lossy()), "bit {bit} of {}: {error}", file.display());
            std::fs::write(file, before).unwrap();
        }
        let before = std::fs::read(file).unwrap();
        std::fs::write(file, &before[..before.len() - 1]).unwrap();
        assert!(checkpoint::verify(&folder).is_err(), "{} cut short", file.display());
        std::fs::remove_file(file).unwrap();
        assert!(checkpoint::verify(&folder).is_err(), "{} missing", file.display());
        std::fs::write(file, before).unwrap();
    }
    let listing = bench.listing();
    for file in ["model.safetensors", "tokenizer.json", "state/optimizer-rank00000.safetensors", "state/state.json"] {
        let before = flip(&folder.join(file), 1000);
        let words = sft("out", "--max-steps 2 --save-steps 2 --resume-from-checkpoint out/checkpoint-2");
        bench.run(&words).fails(6, &[file, "is damaged", "resume from another checkpoint"]);
        std::fs::write(folder.join(file), before).unwrap();
    }
    assert_eq!(bench.listing(), listing, "a refused run writes nothing");
}

#[test]
fn damaged_newest_checkpoints_are_skipped_for_an_older_one() {
    let bench = Bench::new();
    let words = sft("out", "--max-steps 6 --save-steps 2");
    bench.run(&words).ok();
    let (weights, metrics) = (bench.bytes("out/model.safetensors"), bench.metrics("out", "train"));
    std::fs::remove_file(bench.at("out/model.safetensors")).unwrap();
    flip(&bench.at("out/checkpoint-6/state/optimizer-rank00000.safetensors"), 4000);
    flip(&bench.at("out/checkpoint-4/model.safetensors"), 4000);
    let words = words + " --resume-from-checkpoint true";
    let done = bench.run(&words);
    assert_eq!(done.code, Some(0), "{}", done.err);
    for name in ["checkpoint-6/state/optimizer-rank00000.safetensors", "checkpoint-4/model.safetensors"] {
        let named = |line: &str| line.starts_with("warning: ") && line.contains(name) && line.contains("is damaged");
        assert_eq!(done.err.lines().filter(|line| named(line)).count(), 1, "{}", done.err);
    }
    assert!(bench.bytes("out/model.safetensors") == weights);
    assert_eq!(bench.metrics("out", "train"), metrics);
    assert_eq!(bench.metrics("out", "event")[0]["step"], 2);
    for n in [2, 4, 6] {
        checkpoint::verify(&bench.at(&format!("out/checkpoint-{n}"))).unwrap();
        flip(&bench.at(&format!("out/checkpoint-{n}/config.json")), 9);
    }
    bench.run(&words).fails(6, &["checkpoint-6/config.json", "is damaged"]);
}

#[test]
fn the_limit_keeps_the_newest_and_multiples_of_keep_every() {
    let bench = Bench::new();
    bench.run(&sft("a", "--max-steps 7 --save-steps 1 --save-total-limit 2")).ok();
    assert_eq!(steps(&bench.at("a")), [6, 7]);
    bench.run(&sft("b", "--max-steps 7 --save-steps 1 --save-total-limit 2 --keep-every 3")).ok();
    assert_eq!(steps(&bench.at("b")), [3, 5, 6, 7]);
    // The last step is saved too, so that the run can be continued.
    bench.run(&sft("c", "--max-steps 7 --save-steps 3")).ok();
    assert_eq!(steps(&bench.at("c")), [3, 6, 7]);
    bench.run(&sft("d", "--num-train-epochs 2 --save-strategy epoch")).ok();
    assert_eq!(steps(&bench.at("d")), [12, 24]);
    bench.run(&sft("e", "--max-steps 2 --save-strategy steps")).ok();
    assert_eq!(steps(&bench.at("e")), [2]);
    bench.run(&sft("f", "--max-steps 2 --save-strategy no")).ok();
    assert!(steps(&bench.at("f")).is_empty());
    for (rest, why) in [
        ("--save-strategy no --save-steps 2", "--save-strategy no contradicts --save-steps"),
        ("--save-strategy epoch --save-steps 2", "--save-strategy epoch contradicts --save-steps"),
        ("--eval-strategy steps", "--eval-strategy has no effect without --eval-file"),
        ("--eval-file pairs.jsonl --eval-strategy no", "--eval-strategy no contradicts --eval-file"),
        ("--eval-file pairs.jsonl --eval-strategy epoch --eval-steps 2", "--eval-strategy epoch contradicts"),
        ("--keep-every 2", "--keep-every has no effect without --save-total-limit"),
        ("--save-strategy best", "--save-strategy best is known in TRL"),
    ] {
        bench.run(&sft("g", &format!("--max-steps 2 {rest}"))).fails(2, &[why]);
    }
    assert!(!bench.at("g").exists());
}

#[test]
fn a_checkpoint_that_cannot_be_removed_is_a_warning_and_removed_later() {
    let bench = Bench::new();
    let run = |steps: u64, rest: &str| {
        let words =
            format!("--max-steps {steps} --save-steps 1 --save-total-limit 1 --lr-scheduler-type constant {rest}");
        bench.run(&sft("out", &words))
    };
    // A checkpoint is renamed before its removal; this file blocks the new name.
    std::fs::create_dir(bench.at("out")).unwrap();
    bench.write("out/checkpoint-1.old", "in the way");
    let done = run(4, "");
    assert_eq!(done.code, Some(0), "{}", done.err);
    // Every save after the first one tries again to remove `checkpoint-1`.
    assert_eq!(done.err.matches("warning: an old checkpoint could not be removed").count(), 3, "{}", done.err);
    assert_eq!(done.err.matches("out/checkpoint-1.old").count(), 3, "{}", done.err);
    assert!(bench.at("out/model.safetensors").exists());
    assert_eq!(steps(&bench.at("out")), [1, 4]);
    std::fs::remove_file(bench.at("out/checkpoint-1.old")).unwrap();
    run(5, "--resume-from-checkpoint true").ok();
    assert_eq!(steps(&bench.at("out")), [5]);
}

#[test]
fn checkpoints_above_the_limit_are_removed_when_a_run_is_resumed() {
    let bench = Bench::new();
    let words = "--max-steps 4 --save-steps 1 --save-total-limit 2";
    // There are more checkpoints than the limit, as after a kill between a save and the removal of older
    // ones.
    bench.run(&sft("out", "--max-steps 4 --save-steps 1")).ok();
    assert_eq!(steps(&bench.at("out")), [1, 2, 3, 4]);
    bench.copy("out/checkpoint-1", "out/checkpoint-9.old");
    // A run that is resumed after its last step saves no further checkpoint.
    bench.run(&sft("out", &format!("{words} --resume-from-checkpoint true"))).ok();
    assert_eq!(steps(&bench.at("out")), [3, 4]);
    assert!(!bench.at("out/checkpoint-9.old").exists());
    // Checkpoints in a different folder do not belong to this run, so they are kept.
    bench.run(&sft("new", &format!("{words} --resume-from-checkpoint out/checkpoint-3"))).ok();
    assert_eq!((steps(&bench.at("out")), steps(&bench.at("new"))), (vec![3, 4], vec![4]));
}

#[test]
fn evaluations_follow_the_strategy() {
    let bench = Bench::new();
    for (rest, expected) in [
        ("--eval-strategy epoch --max-steps 25", vec![0, 12, 24, 25]),
        ("--evaluation_strategy steps --eval_steps 4 --max-steps 9", vec![0, 4, 8, 9]),
        ("--eval-strategy steps --logging-steps 3 --max-steps 6", vec![0, 3, 6]),
    ] {
        bench.run(&sft("out", &format!("--eval-file pairs.jsonl --overwrite-output-dir {rest}"))).ok();
        let found: Vec<u64> = bench.metrics("out", "eval").iter().map(|row| row["step"].as_u64().unwrap()).collect();
        assert_eq!(found, expected, "{rest}");
    }
}

#[test]
fn a_run_outlives_its_start_folder() {
    let bench = Bench::new();
    bench.copy("model", "start");
    let words = "dpo --model start --train-file groups.jsonl --output-dir out --max-steps 30 --save-steps 1 \
                 --save-total-limit 1 --per-device-train-batch-size 1 --quiet";
    let mut run = bench.command(words).spawn().unwrap();
    while steps(&bench.at("out")).is_empty() && run.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::fs::remove_dir_all(bench.at("start")).unwrap();
    assert!(run.wait().unwrap().success());
    for folder in ["out", "out/checkpoint-30"] {
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"] {
            assert!(bench.bytes(&format!("{folder}/{name}")) == bench.bytes(&format!("model/{name}")), "{name}");
        }
        assert!(bench.at(folder).join("generation_config.json").is_file());
    }
}

/// Writes `chats.jsonl` with conversations, because plain text uses no chat template.
fn chats(bench: &Bench) {
    let rows = bench.rows("pairs.jsonl").into_iter().take(6);
    let turn = |role: &str, text: &serde_json::Value| serde_json::json!([{ "role": role, "content": text }]);
    let lines: Vec<String> = rows
        .map(|row| {
            serde_json::json!({
                "prompt": turn("user", &row["prompts"][0]),
                "chosen": turn("assistant", &row["responses"][0]),
                "rejected": turn("assistant", &row["responses"][1]),
            })
            .to_string()
        })
        .collect();
    bench.write("chats.jsonl", lines.join("\n"));
}

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>\n{% endif %}";

#[test]
fn saved_folders_hold_the_training_chat_template() {
    let bench = Bench::new();
    chats(&bench);
    bench.write("own.jinja", TEMPLATE);
    let words = "sft --model model --train-file chats.jsonl --output-dir out --quiet --max-steps 3 --save-steps 2 \
                 --chat-template-path own.jinja";
    bench.run(words).ok();
    let score = |model: &str, rest: &str| {
        bench.run(&format!("score --model {model} --input chats.jsonl --output scores.jsonl {rest}")).ok();
        bench.bytes("scores.jsonl")
    };
    for folder in ["out", "out/checkpoint-2"] {
        assert_eq!(bench.bytes(&format!("{folder}/chat_template.jinja")), TEMPLATE.as_bytes());
        assert!(score(folder, "") == score(folder, "--chat-template-path own.jinja"));
        assert!(score(folder, "") != score(folder, "--chat-template-path model/chat_template.jinja"));
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            assert!(bench.bytes(&format!("{folder}/{name}")) == bench.bytes(&format!("model/{name}")), "{name}");
        }
    }
    // The template is part of the run: with a different template, or none, the run cannot be resumed.
    let resume = " --resume-from-checkpoint out/checkpoint-2";
    bench.write("other.jinja", TEMPLATE.replace('<', "[").replace('>', "]"));
    let other = words.replace("own.jinja", "other.jinja") + resume;
    bench.run(&other).fails(6, &["cannot resume", "chat template was"]);
    let none = words.replace("--chat-template-path own.jinja", resume);
    bench.run(&none).fails(6, &["cannot resume", "chat template was"]);
    // If a run is overwritten, its chat template is replaced too.
    bench.run(&format!("{} --overwrite-output-dir", words.replace("--chat-template-path own.jinja", ""))).ok();
    assert!(bench.bytes("out/chat_template.jinja") == bench.bytes("model/chat_template.jinja"));
}
