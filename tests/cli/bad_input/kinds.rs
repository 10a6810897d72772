//! Paths that name no regular file: pipes, devices, folders and links without a target end a command
//! with a message and never block it. Links out of a model folder are not copied into an output.

use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::workbench::Bench;

/// Kinds of paths that are not regular files, each with the text of its message.
const KINDS: [(&str, &str); 4] = [
    ("mkfifo", "is a pipe, not a regular file"),
    ("ln -s /dev/zero", "is a device, not a regular file"),
    ("mkdir", "is a folder, not a regular file"),
    ("ln -s nowhere", "is a link to nowhere, which does not exist"),
];

#[test]
fn a_file_of_a_model_that_is_not_regular_is_named() {
    let bench = Bench::new();
    for (i, file) in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "chat_template.jinja",
        "model.safetensors",
    ]
    .into_iter()
    .enumerate()
    {
        for (make, why) in KINDS {
            // Both commands read model files with the same code, so each file is tested with one of them.
            // Each command is tested with every kind of path.
            let commands = [
                "dpo --model bad --train-file pairs.jsonl --output-dir out",
                "score --model bad --input pairs.jsonl --output s.jsonl",
            ];
            let script = format!("rm -rf bad; cp -r model bad; rm -f bad/{file}; {make} bad/{file}");
            bench.bash(&format!("{script}; $MAPL {}", commands[i % 2])).fails(6, &[&format!("bad/{file}: {why}")]);
        }
    }
    // Files that are named like weights but are not part of the model are not opened.
    for (make, _) in KINDS {
        bench
            .bash(&format!(
                "rm -rf bad out; cp -r model bad; {make} bad/more.safetensors; $MAPL dpo --model bad --train-file \
                 pairs.jsonl --output-dir out --max-steps 1"
            ))
            .ok();
    }
}

#[test]
fn shards_stay_in_the_folder_and_are_regular_files() {
    let bench = Bench::new();
    let weights = bench.bytes("model/model.safetensors");
    let size = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + size]).unwrap();
    let names: Vec<&String> = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__").collect();
    let index = |file: &str| {
        let map: serde_json::Map<_, _> = names.iter().map(|name| ((*name).clone(), file.into())).collect();
        serde_json::json!({ "weight_map": map }).to_string()
    };
    bench.bash("cp -r model bad; mv bad/model.safetensors shard.safetensors").ok();
    let score = "$MAPL score --model bad --input pairs.jsonl --output s.jsonl";
    for outside in ["../shard.safetensors", "/etc/passwd", "..", "."] {
        bench.write("bad/model.safetensors.index.json", index(outside));
        bench.bash(score).fails(6, &["bad/model.safetensors.index.json", "name of a file in this folder"]);
    }
    bench.write("bad/model.safetensors.index.json", index("part.safetensors"));
    for (make, why) in KINDS {
        bench
            .bash(&format!("rm -rf bad/part.safetensors; {make} bad/part.safetensors; {score}"))
            .fails(6, &[&format!("bad/part.safetensors: {why}")]);
    }
    // A link is followed for reading.
    bench.bash(&format!("rm bad/part.safetensors; ln -s ../shard.safetensors bad/part.safetensors; {score}")).ok();
}

#[test]
fn parts_of_a_checkpoint_that_are_not_regular_are_named() {
    let bench = Bench::new();
    let run = "$MAPL dpo --model model --train-file pairs.jsonl --output-dir out --max-steps 2 --save-steps 1";
    bench.bash(run).ok();
    let resume = format!("{run} --resume-from-checkpoint out/checkpoint-1");
    for part in ["state/state.json", "state/optimizer-rank00000.safetensors", "model.safetensors", "tokenizer.json"] {
        for (make, why) in KINDS {
            bench
                .bash(&format!(
                    "rm -rf out; cp -r kept out 2>/dev/null || {{ {run} >/dev/null; cp -r out kept; }}; cd out/checkpoint-1; \
                     rm {part}; {make} {part}; cd ../..; {resume}"
                ))
                .fails(6, &[&format!("out/checkpoint-1/{part}"), why, "resume from another checkpoint"]);
        }
    }
    // The logs and the manifest of the resumed run are checked too.
    for (make, why) in KINDS {
        let prepare = |file: &str| format!("rm -rf out; cp -r kept out; rm out/{file}; {make} out/{file}");
        bench.bash(&format!("{}; {resume}", prepare("metrics.jsonl"))).fails(6, &["out/metrics.jsonl", why]);
        // A manifest that cannot be read is replaced.
        if make != "mkdir" {
            let resumed = bench.bash(&format!("{}; {resume}", prepare("run.json"))).ok();
            assert!(resumed.err.contains("earlier resumes"), "{}", resumed.err);
            assert_eq!(bench.json("out/run.json")["status"], "finished");
        }
        bench.bash(&format!("{}; $MAPL report out", prepare("run.json"))).fails(3, &["out/run.json", why]);
        bench.bash(&format!("{}; $MAPL report out", prepare("metrics.jsonl"))).fails(3, &["out/metrics.jsonl", why]);
        bench.bash(&format!("{}; $MAPL watch out --once", prepare("metrics.jsonl"))).fails(3, &["metrics.jsonl", why]);
        bench.bash(&format!("{}; $MAPL watch out --once", prepare("run.json"))).ok();
        let eval = "$MAPL eval --model out --input pairs.jsonl --bootstrap 0";
        bench.bash(&format!("{}; {eval}", prepare("run.json"))).fails(6, &["out/run.json", why]);
    }
}

#[test]
fn a_state_that_names_files_outside_of_its_checkpoint_is_refused() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file pairs.jsonl --output-dir out --max-steps 2 --save-steps 1";
    bench.run(run).ok();
    let good = bench.json("out/checkpoint-1/state/state.json");
    for name in ["../../pairs.jsonl", "/etc/passwd", "state/../../x"] {
        let mut state = good.clone();
        state["files"][name] = "0".repeat(64).into();
        let text = state.to_string();
        bench.write("out/checkpoint-1/state/state.json", &text);
        let line = format!("state/state.json {}\n", blake3::hash(text.as_bytes()).to_hex());
        bench.write("out/checkpoint-1/DONE", format!("{line}{}\n", blake3::hash(line.as_bytes()).to_hex()));
        bench
            .run(&format!("{run} --resume-from-checkpoint out/checkpoint-1"))
            .fails(6, &["out/checkpoint-1/state/state.json", name, "not in the checkpoint"]);
    }
}

#[test]
fn a_link_to_a_private_file_is_not_copied_into_a_model() {
    let bench = Bench::new();
    bench.write("private", "secret");
    std::fs::create_dir(bench.at("model/additional_chat_templates")).unwrap();
    let train = "dpo --model model --train-file pairs.jsonl --output-dir out --max-steps 1";
    for file in ["vocab.txt", "tokenizer.model", "additional_chat_templates/tool_use.jinja"] {
        symlink(bench.at("private"), bench.at("model").join(file)).unwrap();
        let parts = [&format!("model/{file}: is a link to"), "private", "copied into the output"];
        bench.run(train).fails(6, &parts);
        bench.run("init --preset quickstart --tokenizer model --output-dir new").fails(6, &parts);
        // A command that copies nothing may read the linked file.
        bench.run("score --model model --input pairs.jsonl --output s.jsonl").ok();
        std::fs::remove_file(bench.at("model").join(file)).unwrap();
        assert!(!bench.at("out").exists() && !bench.at("new").exists());
    }
    // Unknown keys of these two files are copied into the trained model, so the files must not be links out
    // of the folder.
    for file in ["config.json", "generation_config.json"] {
        let (inside, outside) = (bench.at("model").join(file), bench.at("outside.json"));
        std::fs::rename(&inside, &outside).unwrap();
        symlink(&outside, &inside).unwrap();
        bench.run(train).fails(6, &[&format!("model/{file}: is a link to"), "outside.json"]);
        std::fs::rename(&outside, &inside).unwrap();
    }
    // Weights are converted and not copied, so their file may be such a link.
    std::fs::rename(bench.at("model/model.safetensors"), bench.at("weights")).unwrap();
    symlink("../weights", bench.at("model/model.safetensors")).unwrap();
    bench.run(train).ok();
}

#[test]
fn a_snapshot_of_a_hugging_face_cache_is_read_and_its_tokenizer_copied() {
    let bench = Bench::new();
    bench.bash(
        "mkdir -p hub/models--a--b/blobs hub/models--a--b/snapshots/0123; cd hub/models--a--b/snapshots/0123; \
         mkdir additional_chat_templates; echo '{{ messages }}' > ../../blobs/more; \
         ln -s ../../../blobs/more additional_chat_templates/tool_use.jinja; \
         for f in ../../../../model/*; do n=$(basename $f); cp $f ../../blobs/sha-$n; ln -s ../../blobs/sha-$n $n; done",
    )
    .ok();
    bench.bash("ln -s hub/models--a--b/snapshots/0123 short").ok();
    for model in ["hub/models--a--b/snapshots/0123", "short"] {
        let rest = "--train-file pairs.jsonl --max-steps 1 --overwrite-output-dir";
        bench.run(&format!("dpo --model {model} --output-dir out {rest}")).ok();
        for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            assert!(bench.bytes(&format!("out/{file}")) == bench.bytes(&format!("model/{file}")), "{file}");
        }
        assert_eq!(bench.bytes("out/additional_chat_templates/tool_use.jinja"), b"{{ messages }}\n");
    }
}

#[test]
fn data_come_from_a_pipe_once() {
    let bench = Bench::new();
    let train = "$MAPL dpo --model model --output-dir out --max-steps 1 --overwrite-output-dir";
    bench.bash(&format!("{train} --train-file <(cat pairs.jsonl)")).ok();
    bench.bash(&format!("cat pairs.jsonl | {train} --train-file /dev/stdin")).ok();
    bench.bash(&format!("{train} --train-file <(cat pairs.jsonl) --eval-file <(cat pairs.jsonl)")).ok();
    let twice = ["can be read only once"];
    bench.bash(&format!("cat pairs.jsonl | {train} --train-file /dev/stdin --eval-file /dev/stdin")).fails(2, &twice);
    let build = "$MAPL data build --output built.jsonl --input";
    bench.bash(&format!("mkfifo p.jsonl; {build} p.jsonl ./p.jsonl")).fails(2, &twice);
    bench.bash(&format!("(cat pairs.jsonl > p.jsonl) & {build} p.jsonl")).ok();
    bench.bash("mkfifo t.txt; (echo 'a text of words' > t.txt) & $MAPL tokenizer --input t.txt --vocab-size 270 --output-dir t").ok();
    // Rows and plain text are told apart by the first character, which a pipe gives only once.
    bench
        .bash("$MAPL tokenizer --input <(cat pairs.jsonl) --vocab-size 300 --output-dir t2")
        .fails(3, &["is not a regular file", ".jsonl or .txt"]);
    bench.bash(&format!("{train} --train-file pairs.jsonl --chat-template-path <(cat model/chat_template.jinja)")).ok();
    bench.bash(&format!("{build} /dev/zero")).fails(3, &["longer than 64 MiB"]);
    bench
        .bash(&format!("{train} --train-file pairs.jsonl --chat-template-path /dev/zero"))
        .fails(6, &["/dev/zero: has more than 16777216 bytes, the limit"]);
    // Result files are read more than once, so a pipe is an error.
    bench.bash("$MAPL compare <(echo) <(echo)").fails(3, &["is a pipe"]);
    bench.bash("$MAPL bench --device cpu --compare <(echo)").fails(3, &["is a pipe"]);
}

#[test]
fn a_file_above_its_limit_is_refused_before_it_is_read() {
    let bench = Bench::new();
    // A sparse file has a length, but needs no disk space.
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"] {
        bench
            .bash(&format!(
                "rm -rf bad; cp -r model bad; truncate -s 1T bad/{file}; ulimit -v 8000000; $MAPL score --model bad --input \
                 pairs.jsonl --output s.jsonl"
            ))
            .fails(6, &[&format!("bad/{file}: has 1099511627776 bytes; at most")]);
    }
}
