//! Tests of damaged weight files and shard indices with the binary, and of truncations and hundreds of
//! flipped bits with the library.

use mapl::model::config::ModelConfig;
use mapl::model::weights::{LoadAs, WeightFiles};
use mapl::rng::Rng;
use serde_json::{Value, json};

use crate::workbench::Bench;

const DPO: &str = "--train-file pairs.jsonl --output-dir out";

/// Header and data of a safetensors file.
fn parts(bytes: &[u8]) -> (Value, Vec<u8>) {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + header]).unwrap(), bytes[8 + header..].to_vec())
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn damaged_weights_are_refused_and_named() {
    let bench = Bench::new();
    let good = bench.bytes("model/model.safetensors");
    let (header, data) = parts(&good);
    let norm = "model.norm.weight";
    let at = header[norm]["data_offsets"][0].as_u64().unwrap() as usize;
    let value = |number: f32| {
        let mut data = data.clone();
        data[at + 4..at + 8].copy_from_slice(&number.to_le_bytes());
        join(&header, &data)
    };
    let edit = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        join(&header, &data)
    };
    let claim = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (value(f32::NAN), &["\"model.norm.weight\" holds NaN at element 1", "finite"]),
        (value(f32::INFINITY), &["\"model.norm.weight\" holds inf at element 1"]),
        (claim(1 << 63), &["header too large"]),
        (claim(u64::MAX), &["header too large"]),
        (claim(good.len() as u64), &["do not contain its header"]),
        (claim(0), &["model.safetensors"]),
        (good[..good.len() - 1].to_vec(), &["is truncated", "of"]),
        ([&good[..], b"x"].concat(), &["header describes"]),
        (good[..7].to_vec(), &["do not contain its header"]),
        (b"\0".repeat(64), &["model.safetensors"]),
        (edit(&|h| h[norm]["shape"] = json!([1, 32])), &["\"model.norm.weight\" has shape [1, 32], expected [32]"]),
        (edit(&|h| h[norm]["shape"] = json!([33])), &["model.safetensors"]),
        (edit(&|h| h[norm]["shape"] = json!([u64::MAX, 2])), &["model.safetensors"]),
        (edit(&|h| h[norm]["dtype"] = json!("I32")), &["\"model.norm.weight\" is stored as I32"]),
        (edit(&|h| h[norm]["dtype"] = json!("F99")), &["model.safetensors"]),
        (edit(&|h| h[norm]["data_offsets"] = json!([u64::MAX - 8, u64::MAX])), &["model.safetensors"]),
        (edit(&|h| h[norm]["data_offsets"] = json!([8, 0])), &["model.safetensors"]),
        (
            edit(&|h| {
                let info = h.as_object_mut().unwrap().remove(norm).unwrap();
                h["model.norm.wait"] = info;
            }),
            &["lack the tensor \"model.norm.weight\" of shape [32]"],
        ),
    ];
    bench.copy("model", "bad");
    let before = bench.listing();
    for (content, parts) in cases {
        bench.write("bad/model.safetensors", content);
        let parts = [&["bad"][..], parts].concat();
        bench.run(&format!("dpo --model bad {DPO}")).fails(6, &parts);
        bench.run(&format!("dpo --model model --ref-model bad {DPO}")).fails(6, &parts);
        assert_eq!(bench.listing(), before, "{parts:?}");
    }
}

#[test]
fn truncations_are_errors_and_flipped_bits_are_errors_or_harmless() {
    let bench = Bench::new();
    let folder = bench.at("model");
    let good = bench.bytes("model/model.safetensors");
    let config = ModelConfig::read(&folder).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let path = folder.join("model.safetensors");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        WeightFiles::open(&folder, &config, LoadAs::Exact)
    };
    for cut in (0..header + 64).step_by(37).chain(header - 4..header + 4).chain([good.len() - 1]) {
        let e = open(&good[..cut]).map(|_| ()).expect_err(&format!("{cut} bytes of {} were read", good.len()));
        assert_eq!(e.exit_code(), 6, "{e}");
        assert!(e.to_string().contains("model.safetensors"), "{e}");
    }
    let mut rng = Rng::keyed(3, &["bits"]);
    let mut refused = 0;
    for _ in 0..400 {
        let (byte, bit) = (rng.below(header), rng.below(8));
        let mut bytes = good.clone();
        bytes[byte] ^= 1 << bit;
        match open(&bytes) {
            // The flip changed white space or a value of the free-form metadata.
            Ok(files) => assert_eq!(files.read_all("model.norm.weight").unwrap().len(), config.hidden),
            Err(e) => {
                assert_eq!(e.exit_code(), 6, "{e}");
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused} of 400 damaged headers were refused");
}

/// Splits the bench's model into two shards with an index; the second holds only the tensor `name`.
fn split(bench: &Bench, folder: &str, name: &str) -> Value {
    bench.copy("model", folder);
    std::fs::remove_file(bench.at(&format!("{folder}/model.safetensors"))).unwrap();
    let (header, data) = parts(&bench.bytes("model/model.safetensors"));
    let mut shards = [(json!({}), Vec::new()), (json!({}), Vec::new())];
    let mut map = json!({});
    for (tensor, info) in header.as_object().unwrap().iter().filter(|(key, _)| *key != "__metadata__") {
        let number = usize::from(tensor == name);
        let (header, bytes) = &mut shards[number];
        let [from, to] = [0, 1].map(|end| info["data_offsets"][end].as_u64().unwrap() as usize);
        header[tensor] = info.clone();
        header[tensor]["data_offsets"] = json!([bytes.len(), bytes.len() + to - from]);
        bytes.extend_from_slice(&data[from..to]);
        map[tensor] = json!(SHARDS[number]);
    }
    for ((header, bytes), file) in shards.iter().zip(SHARDS) {
        bench.write(&format!("{folder}/{file}"), join(header, bytes));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    bench.write(&format!("{folder}/model.safetensors.index.json"), index.to_string());
    index
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

#[test]
fn an_index_may_name_only_files_of_its_folder() {
    let bench = Bench::new();
    let name = "model.norm.weight";
    let index = split(&bench, "bad", name);
    bench.run(&format!("dpo --model bad {DPO} --max-steps 1").replace("--output-dir out", "--output-dir fine")).ok();
    let before = bench.listing();
    for (file, parts) in [
        (json!("model-00009-of-00009.safetensors"), &["index.json", "model-00009", "missing"][..]),
        (json!("../model/model.safetensors"), &["index.json", "../model", "a file in this folder"]),
        (json!("/etc/hostname"), &["index.json", "/etc/hostname", "a file in this folder"]),
        (json!(".."), &["index.json", "a file in this folder"]),
        (json!("config.json"), &["bad/config.json", "safetensors"]),
        (json!(SHARDS[0]), &["index.json", SHARDS[0], name]),
        (json!(7), &["index.json", "weight_map", "a file in this folder"]),
    ] {
        let mut changed = index.clone();
        changed["weight_map"][name] = file;
        bench.write("bad/model.safetensors.index.json", changed.to_string());
        bench.run(&format!("dpo --model bad {DPO}")).fails(6, parts);
    }
    bench.write("bad/model.safetensors.index.json", index.to_string());
    let shard = format!("bad/{}", SHARDS[1]);
    let whole = bench.bytes(&shard);
    bench.write(&shard, &whole[..whole.len() - 2]);
    bench.run(&format!("dpo --model bad {DPO}")).fails(6, &[&shard, "is truncated"]);
    assert_eq!(bench.listing(), before);
}

/// If a model folder lacks a file of a download, the advice is to download that file, not to create a new
/// model.
#[test]
fn an_incomplete_download_is_named() {
    let bench = Bench::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 8988110688\n";
    for name in ["a", "b", "c", "d", "e"] {
        bench.copy("model", name);
    }
    std::fs::remove_file(bench.at("a/config.json")).unwrap();
    std::fs::remove_file(bench.at("b/model.safetensors")).unwrap();
    bench.write("c/model.safetensors", pointer);
    bench.write("d/config.json", pointer);
    bench.write("e/tokenizer.json", pointer);
    let lfs = ["is a Git LFS pointer", "git lfs pull"];
    for (folder, parts) in [
        ("a", &["a: contains no config.json", "download"][..]),
        ("b", &["b: contains neither model.safetensors", "download"]),
        ("c", &[&["c/model.safetensors"], &lfs[..]].concat()),
        ("d", &[&["d/config.json"], &lfs[..]].concat()),
        ("e", &[&["e/tokenizer.json"], &lfs[..]].concat()),
        ("tok", &["tok: contains a tokenizer and no config.json", "mapl init --tokenizer"]),
        ("nowhere", &["nowhere: is not a local folder", "download", "mapl init"]),
    ] {
        let done = bench.run(&format!("dpo --model {folder} {DPO}")).fails(6, parts);
        assert!(["tok", "nowhere"].contains(&folder) || !done.err.contains("mapl init"), "{}", done.err);
    }
    bench.write("rows.jsonl", pointer);
    bench.run("data show --input rows.jsonl --tokenizer tok").fails(3, &["rows.jsonl:1", lfs[0]]);
}
