//! Reading and writing weight files: round trips, shards, number formats, tied weights, and the
//! message of each failure.

use std::collections::BTreeMap;
use std::path::Path;

use common::golden;
use half::{bf16, f16};
use mapl::model::config::{ModelConfig, StoredDtype};
use mapl::model::weights::{DEFAULT_SHARD_BYTES, LoadAs, WeightFiles, write_model};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};

type Weights = BTreeMap<String, Vec<f32>>;

fn load(folder: &Path) -> (ModelConfig, Weights) {
    let config = ModelConfig::read(folder).unwrap();
    let files = WeightFiles::open(folder, &config, LoadAs::Exact).unwrap();
    let read = |name: String| (name.clone(), files.read_all(&name).unwrap());
    let weights = config.tensors().into_iter().map(|t| read(t.name)).collect();
    (config, weights)
}

fn save(folder: &Path, config: &ModelConfig, weights: &Weights, dtype: StoredDtype, shard_bytes: u64) {
    write_model(folder, config, dtype, shard_bytes, &mut |tensor, offset, out| {
        out.copy_from_slice(&weights[&tensor.name][offset..offset + out.len()]);
        Ok(())
    })
    .unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A raw safetensors file: name -> (format, shape, little-endian bytes).
pub(crate) type Raw = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub(crate) fn raw(folder: &Path) -> Raw {
    raw_file(&folder.join("model.safetensors"))
}

pub(crate) fn raw_file(path: &Path) -> Raw {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(n, v)| (n, (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect()
}

pub(crate) fn write_raw(path: &Path, tensors: &Raw) {
    let views = tensors.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// Copies a golden model to a new folder, which a test can damage.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden::model_folder(name)).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    folder
}

/// Asserts that opening `folder` fails with exit code 6 and a message with all `parts`.
pub(crate) fn refused(folder: &Path, load_as: LoadAs, parts: &[&str]) {
    let config = ModelConfig::read(folder).unwrap();
    let config = if load_as == LoadAs::RewardStart { config.into_reward(0).unwrap() } else { config };
    let Err(error) = WeightFiles::open(folder, &config, load_as) else { panic!("{parts:?} was accepted") };
    let text = error.to_string();
    assert_eq!(error.exit_code(), 6, "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn an_f32_round_trip_keeps_all_bytes() {
    for name in ["llama", "qwen2", "llama-reward", "qwen2-reward"] {
        let folder = golden::model_folder(name);
        let (config, weights) = load(&folder);
        let out = tempfile::tempdir().unwrap();
        save(out.path(), &config, &weights, StoredDtype::F32, DEFAULT_SHARD_BYTES);
        assert_eq!(raw(out.path()), raw(&folder), "{name}");
        assert_eq!(load(out.path()).1, weights);
        let mut expected = vec!["config.json", "model.safetensors"];
        if !name.ends_with("reward") {
            expected.insert(1, "generation_config.json");
        }
        assert_eq!(names(out.path()), expected);
        // Header: metadata, sorted names, data aligned to 8 bytes.
        let bytes = std::fs::read(out.path().join("model.safetensors")).unwrap();
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        assert!(metadata.offset_keys().is_sorted());
    }
}

#[test]
fn every_family_is_saved_with_its_own_tensors() {
    for name in golden::models().into_iter().filter(|name| *name != "llama-bf16-sharded") {
        let folder = golden::model_folder(name);
        let (config, weights) = load(&folder);
        let dtype = config.dtype.unwrap();
        let out = tempfile::tempdir().unwrap();
        save(out.path(), &config, &weights, dtype, DEFAULT_SHARD_BYTES);
        assert_eq!(raw(out.path()), raw(&folder), "{name}");
        assert_eq!(load(out.path()).1, weights, "{name}");
    }
}

#[test]
fn shards_hold_the_same_model_as_one_file() {
    let (config, weights) = load(&golden::model_folder("llama"));
    let out = tempfile::tempdir().unwrap();
    // The single file of an earlier save would take precedence over the shards, so the save must
    // remove it.
    save(out.path(), &config, &weights, StoredDtype::F32, DEFAULT_SHARD_BYTES);
    save(out.path(), &config, &weights, StoredDtype::F32, 10_000);
    assert_eq!(load(out.path()).1, weights);
    let found = names(out.path());
    let shards: Vec<&String> = found.iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 5, "{found:?}");
    assert_eq!(*shards[0], format!("model-00001-of-{:05}.safetensors", shards.len()));
    let mut total = 0;
    for shard in &shards {
        let bytes = std::fs::read(out.path().join(shard)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let size: usize = file.iter().map(|(_, v)| v.data().len()).sum();
        assert!(size <= 10_000 || file.len() == 1, "{shard}: {size} bytes in {} tensors", file.len());
        total += size;
    }
    let index: Value =
        serde_json::from_slice(&std::fs::read(out.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], json!(total));
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.keys().cloned().collect::<Vec<_>>(), weights.keys().cloned().collect::<Vec<_>>());
    // A save to a single file must remove the shards and index of the earlier save.
    save(out.path(), &config, &weights, StoredDtype::F32, DEFAULT_SHARD_BYTES);
    assert_eq!(names(out.path()), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(load(out.path()).1, weights);
}

/// Hub caches and shared folders hold links; a save must not change what they point to.
#[cfg(unix)]
#[test]
fn a_save_replaces_links_and_keeps_their_targets() {
    let (config, weights) = load(&golden::model_folder("llama-bf16-sharded"));
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = ["config.json", "generation_config.json", "model.safetensors.index.json"];
    for name in files {
        let target = elsewhere.path().join(name);
        std::fs::write(&target, "someone else's").unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join(name)).unwrap();
    }
    save(folder.path(), &config, &weights, StoredDtype::Bf16, 4096);
    for name in files {
        assert_eq!(std::fs::read(elsewhere.path().join(name)).unwrap(), b"someone else's", "{name}");
        assert!(std::fs::symlink_metadata(folder.path().join(name)).unwrap().is_file(), "{name}");
    }
    assert_eq!(load(folder.path()).1, weights);
}

#[test]
fn transformers_bf16_shards_round_trip_exactly() {
    let folder = golden::model_folder("llama-bf16-sharded");
    let (config, weights) = load(&folder);
    assert_eq!(config.dtype, Some(StoredDtype::Bf16));
    assert!(weights.values().flatten().all(|x| x.to_bits() & 0xffff == 0), "bf16 values must have 16 zero bits");
    let files = WeightFiles::open(&folder, &config, LoadAs::Exact).unwrap();
    assert_eq!(files.dtypes(), [StoredDtype::Bf16]);
    let out = tempfile::tempdir().unwrap();
    save(out.path(), &config, &weights, StoredDtype::Bf16, 16_000);
    assert_eq!(load(out.path()).1, weights);
    for (a, b) in weights.keys().zip(load(out.path()).1.keys()) {
        assert_eq!(a, b);
    }
}

#[test]
fn writing_bf16_rounds_to_nearest_even() {
    let (config, mut weights) = load(&golden::model_folder("qwen2"));
    let norm = weights.get_mut("model.norm.weight").unwrap();
    // Ties (to even, down and up), just above a tie, and a carry into the exponent.
    norm[..4].copy_from_slice(&[0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3fff_ffff].map(f32::from_bits));
    let out = tempfile::tempdir().unwrap();
    save(out.path(), &config, &weights, StoredDtype::Bf16, DEFAULT_SHARD_BYTES);
    let read = load(out.path()).1;
    let bits: Vec<u32> = read["model.norm.weight"][..4].iter().map(|x| x.to_bits()).collect();
    assert_eq!(bits, [0x3f80_0000, 0x3f82_0000, 0x3f81_0000, 0x4000_0000]);
    for (name, values) in &weights {
        assert!(values.iter().zip(&read[name]).all(|(x, y)| bf16::from_f32(*x).to_f32() == *y), "{name}");
    }
}

#[test]
fn writing_f16_rounds_and_refuses_weights_beyond_its_range() {
    let (config, mut weights) = load(&golden::model_folder("qwen2"));
    let out = tempfile::tempdir().unwrap();
    save(out.path(), &config, &weights, StoredDtype::F16, DEFAULT_SHARD_BYTES);
    let read = load(out.path()).1;
    for (name, values) in &weights {
        assert!(values.iter().zip(&read[name]).all(|(x, y)| f16::from_f32(*x).to_f32() == *y), "{name}");
    }
    weights.get_mut("model.norm.weight").unwrap()[3] = 65_536.0;
    let error =
        write_model(out.path(), &config, StoredDtype::F16, DEFAULT_SHARD_BYTES, &mut |tensor, offset, values| {
            values.copy_from_slice(&weights[&tensor.name][offset..offset + values.len()]);
            Ok(())
        });
    let why = error.unwrap_err().to_string();
    assert!(why.contains("model.norm.weight") && why.contains("6.5536e4") && why.contains("float16"), "{why}");
    // The earlier save is complete.
    assert_eq!(load(out.path()).1, read);
}

/// Every finite bit pattern of a 16-bit format is read as exactly its value.
#[test]
fn f16_and_bf16_conversions_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    let patterns: Vec<u16> = (0..=u16::MAX).filter(|b| bf16::from_bits(*b).is_finite()).collect();
    let hidden = 64;
    let rows = patterns.len() / hidden;
    let model = json!({"model_type": "llama", "vocab_size": rows, "hidden_size": hidden, "intermediate_size": 2,
        "num_hidden_layers": 1, "num_attention_heads": 1, "tie_word_embeddings": true});
    std::fs::write(folder.path().join("config.json"), model.to_string()).unwrap();
    let config = ModelConfig::read(folder.path()).unwrap();
    for (dtype, wide) in [
        (Dtype::BF16, (|b| f64::from(bf16::from_bits(b).to_f32())) as fn(u16) -> f64),
        // f16 by definition: sign, 5 exponent bits, 10 mantissa bits.
        (Dtype::F16, |b| {
            let (sign, exponent, mantissa) = (b >> 15, i32::from(b >> 10 & 31), f64::from(b & 1023));
            let size = if exponent == 0 {
                mantissa / 1024.0 * 2f64.powi(-14)
            } else {
                (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15)
            };
            if sign == 1 { -size } else { size }
        }),
    ] {
        let finite = |b: u16| if dtype == Dtype::F16 { f16::from_bits(b).is_finite() } else { true };
        let table: Vec<u16> = patterns.iter().map(|b| if finite(*b) { *b } else { 0 }).collect();
        let mut tensors = Raw::new();
        for tensor in config.tensors() {
            let bytes = if tensor.name == "model.embed_tokens.weight" {
                table[..rows * hidden].iter().flat_map(|b| b.to_le_bytes()).collect()
            } else {
                vec![0; 2 * tensor.elements()]
            };
            tensors.insert(tensor.name, (dtype, tensor.shape, bytes));
        }
        write_raw(&folder.path().join("model.safetensors"), &tensors);
        let read = load(folder.path()).1;
        for (value, bits) in read["model.embed_tokens.weight"].iter().zip(&table) {
            assert!(f64::from(*value) == wide(*bits), "{dtype} {bits:#06x}: {value}");
        }
    }
}

#[test]
fn chunks_cover_a_tensor_once_in_order() {
    let (config, mut weights) = load(&golden::model_folder("llama"));
    let config = config.with_vocabulary(5_000, vec![2], None, None).unwrap();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        weights.insert(name.into(), (0..5_000 * 32).map(|i| i as f32).collect());
    }
    let out = tempfile::tempdir().unwrap();
    save(out.path(), &config, &weights, StoredDtype::F32, DEFAULT_SHARD_BYTES);
    let files = WeightFiles::open(out.path(), &config, LoadAs::Exact).unwrap();
    let (mut next, mut chunks) = (0, 0);
    files
        .read("lm_head.weight", &mut |offset, values| {
            assert_eq!(offset, next);
            assert!(values.iter().enumerate().all(|(i, x)| *x == (offset + i) as f32));
            next += values.len();
            chunks += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!((next, chunks), (160_000, 3));
    assert!(files.read("nope", &mut |_, _| Ok(())).unwrap_err().to_string().contains("nope"));
}

#[test]
fn a_stored_tied_projection_must_equal_the_embedding() {
    let folder = copy("qwen2");
    let mut tensors = raw(folder.path());
    let table = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), table);
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (Dtype::F32, vec![4], vec![0; 16]));
    let path = folder.path().join("model.safetensors");
    write_raw(&path, &tensors);
    let (config, weights) = load(folder.path());
    assert_eq!(weights, load(&golden::model_folder("qwen2")).1);
    let files = WeightFiles::open(folder.path(), &config, LoadAs::Exact).unwrap();
    assert_eq!(files.ignored(), ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]);
    // Changes one bit of the second element.
    tensors.get_mut("lm_head.weight").unwrap().2[4] ^= 1;
    write_raw(&path, &tensors);
    refused(folder.path(), LoadAs::Exact, &["tie_word_embeddings", "lm_head.weight", "element 1 "]);
    tensors.insert("lm_head.weight".into(), (Dtype::F32, vec![2, 2], vec![0; 16]));
    write_raw(&path, &tensors);
    refused(folder.path(), LoadAs::Exact, &["lm_head.weight", "[2, 2]", "[160, 32]"]);
}

#[test]
fn only_the_score_may_be_missing_and_only_for_a_reward_start() {
    let folder = golden::model_folder("llama");
    let config = ModelConfig::read(&folder).unwrap().into_reward(159).unwrap();
    let files = WeightFiles::open(&folder, &config, LoadAs::RewardStart).unwrap();
    assert!(files.score_missing());
    assert_eq!(files.ignored(), ["lm_head.weight"]);
    let Err(error) = WeightFiles::open(&folder, &config, LoadAs::Exact) else { panic!("accepted") };
    let text = error.to_string();
    assert!(text.contains("score.weight") && text.contains("not a trained reward model"), "{text}");
    let folder = golden::model_folder("llama-reward");
    let config = ModelConfig::read(&folder).unwrap();
    assert!(!WeightFiles::open(&folder, &config, LoadAs::RewardStart).unwrap().score_missing());
    // Any other missing tensor is an error in both load modes.
    let folder = copy("llama");
    let mut tensors = raw(folder.path());
    tensors.remove("model.norm.weight");
    write_raw(&folder.path().join("model.safetensors"), &tensors);
    for load_as in [LoadAs::Exact, LoadAs::RewardStart] {
        refused(folder.path(), load_as, &["model.norm.weight", "[32]", "lack"]);
    }
}

#[test]
fn damaged_files_and_wrong_tensors_are_named() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let tensors = raw(folder.path());
    let exact = |parts: &[&str]| refused(folder.path(), LoadAs::Exact, parts);

    let size = whole.len();
    for length in [0, 7, 8, 100, size - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        exact(&["model.safetensors: is truncated", &format!("{length} bytes"), "again"]);
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    exact(&["model.safetensors: has", &format!("{} bytes", size + 1), &size.to_string()]);
    let mut damaged = whole.clone();
    damaged[9] = b'}';
    std::fs::write(&path, &damaged).unwrap();
    exact(&["model.safetensors: is damaged"]);
    std::fs::write(&path, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
    exact(&["model.safetensors: is damaged"]);

    let with = |name: &str, dtype: Dtype, shape: &[usize], byte: u8| {
        let mut changed = tensors.clone();
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        changed.insert(name.into(), (dtype, shape.to_vec(), vec![byte; bytes]));
        write_raw(&path, &changed);
    };
    with("model.norm.weight", Dtype::F32, &[33], 0);
    exact(&["model.safetensors", "model.norm.weight", "[33]", "[32]", "config.json"]);
    with("model.layers.1.mlp.up_proj.weight", Dtype::F32, &[32, 48], 0);
    exact(&["model.layers.1.mlp.up_proj.weight", "[32, 48]", "[48, 32]"]);
    with("model.norm.weight", Dtype::I32, &[32], 0);
    exact(&["model.norm.weight", "I32", "BF16"]);
    with("model.layers.2.input_layernorm.weight", Dtype::F32, &[32], 0);
    exact(&["model.layers.2.input_layernorm.weight", "[32]", "LlamaForCausalLM does not have"]);
    with("model.layers.0.self_attn.q_proj.bias", Dtype::F32, &[48], 0);
    exact(&["model.layers.0.self_attn.q_proj.bias", "does not have"]);

    // All bits set is a NaN; it is found when the tensor is read.
    with("model.norm.weight", Dtype::F32, &[32], 0xff);
    let config = ModelConfig::read(folder.path()).unwrap();
    let files = WeightFiles::open(folder.path(), &config, LoadAs::Exact).unwrap();
    let error = files.read_all("model.norm.weight").unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains("\"model.norm.weight\" holds NaN at element 0"), "{error}");

    std::fs::remove_file(&path).unwrap();
    exact(&["neither model.safetensors nor"]);
    std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    exact(&["pytorch_model.bin", "safetensors"]);
}

#[test]
fn a_broken_index_is_named() {
    let folder = copy("llama-bf16-sharded");
    let exact = |parts: &[&str]| refused(folder.path(), LoadAs::Exact, parts);
    let index = folder.path().join("model.safetensors.index.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    let file = |i: usize| format!("model-{i:05}-of-00003.safetensors");
    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed["weight_map"][name] = value;
        std::fs::write(&index, changed.to_string()).unwrap();
    };
    with("model.norm.weight", json!("../secret.safetensors"));
    exact(&["weight_map.model.norm.weight", "../secret", "name of a file"]);
    with("model.norm.weight", json!("gone.safetensors"));
    exact(&["gone.safetensors", "model.norm.weight", "missing"]);
    let norm = good["weight_map"]["model.norm.weight"].as_str().unwrap();
    let other = (1..=3).map(file).find(|f| f != norm).unwrap();
    with("model.norm.weight", json!(other));
    exact(&["model.norm.weight", norm, &other]);
    with("model.extra.weight", json!(file(1)));
    exact(&["model.extra.weight", "no shard holds it"]);
    std::fs::write(&index, json!({"weight_map": {}}).to_string()).unwrap();
    exact(&["lists no tensor"]);
    std::fs::write(&index, json!({"metadata": {}}).to_string()).unwrap();
    exact(&["weight_map", "missing"]);
    std::fs::write(&index, b"{").unwrap();
    exact(&["index.json", "not valid JSON"]);

    // One tensor in two shards is an error.
    std::fs::write(&index, good.to_string()).unwrap();
    let shard = folder.path().join(&other);
    let bytes = std::fs::read(&shard).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Raw =
        parsed.tensors().into_iter().map(|(n, v)| (n, (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect();
    tensors.insert("model.norm.weight".into(), (Dtype::BF16, vec![32], vec![0; 64]));
    write_raw(&shard, &tensors);
    exact(&["model.norm.weight", "also in", "one shard"]);
    // A missing shard is an error.
    std::fs::remove_file(&shard).unwrap();
    exact(&[&other, "missing", "download"]);
}

#[test]
fn a_failed_save_keeps_the_old_model() {
    let (config, weights) = load(&golden::model_folder("qwen2"));
    let out = tempfile::tempdir().unwrap();
    save(out.path(), &config, &weights, StoredDtype::F32, DEFAULT_SHARD_BYTES);
    let before = names(out.path());
    let mut calls = 0;
    let error = write_model(out.path(), &config, StoredDtype::F32, 10_000, &mut |_, _, _| {
        calls += 1;
        if calls == 5 { Err(mapl::Error::Runtime("stop".into())) } else { Ok(()) }
    });
    assert_eq!(error.unwrap_err().to_string(), "stop");
    assert_eq!(names(out.path()), before);
    assert_eq!(load(out.path()).1, weights);
}
