//! TensorBoard event files, read back by a decoder that shares no code with the writer.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::workbench::Bench;
use mapl::train::tensorboard::{EventWriter, crc32c, list, masked, tag};

/// Computes CRC-32C bit by bit.
fn crc_by_bits(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
        }
    }
    crc ^ u32::MAX
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Event {
    wall_time: f64,
    step: u64,
    version: Option<String>,
    scalars: BTreeMap<String, f32>,
    starts_session: bool,
}

/// Fields of a protobuf message: field number and bytes of the value (varints as eight bytes).
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
            shift += 7;
        }
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let value = match key & 7 {
            0 => varint(&mut data).to_le_bytes().to_vec(),
            wire => {
                let length = match wire {
                    1 => 8,
                    5 => 4,
                    2 => varint(&mut data) as usize,
                    other => panic!("wire type {other}"),
                };
                let (value, rest) = data.split_at(length);
                data = rest;
                value.to_vec()
            }
        };
        found.push((key >> 3, value));
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn event(data: &[u8]) -> Event {
    let mut event = Event::default();
    for (number, value) in fields(data) {
        match number {
            1 => event.wall_time = f64::from_le_bytes(value.try_into().unwrap()),
            2 => event.step = u64::from_le_bytes(value.try_into().unwrap()),
            3 => event.version = Some(text(&value)),
            5 => {
                for (number, scalar) in fields(&value) {
                    assert_eq!(number, 1);
                    let parts = fields(&scalar);
                    assert_eq!(parts.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2]);
                    let number = f32::from_le_bytes(parts[1].1.clone().try_into().unwrap());
                    assert_eq!(event.scalars.insert(text(&parts[0].1), number), None, "a tag is written twice");
                }
            }
            7 => {
                assert_eq!(fields(&value), [(1, 1u64.to_le_bytes().to_vec())]);
                event.starts_session = true;
            }
            other => panic!("field {other}"),
        }
    }
    event
}

/// All events of a file; verifies lengths and checksums.
fn events(path: &Path) -> Vec<Event> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mask = |crc: u32| crc.rotate_left(17).wrapping_add(0xa282_ead8);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(number(&rest[8..12]), mask(crc_by_bits(&rest[..8])), "checksum of the length");
        let data = &rest[12..12 + length];
        assert_eq!(number(&rest[12 + length..16 + length]), mask(crc_by_bits(data)), "checksum of the data");
        found.push(event(data));
        rest = &rest[16 + length..];
    }
    assert_eq!(found[0].version.as_deref(), Some("brain.Event:2"));
    assert!(found.iter().skip(1).all(|e| e.version.is_none()));
    found
}

#[test]
fn checksums_match_rfc_3720() {
    let ascending: Vec<u8> = (0..32).collect();
    let descending: Vec<u8> = (0..32).rev().collect();
    for (data, expected) in [
        (vec![0; 32], 0x8a91_36aa),
        (vec![0xff; 32], 0x62a8_ab43),
        (ascending, 0x46dd_794e),
        (descending, 0x113f_db5c),
        (b"123456789".to_vec(), 0xe306_9283),
        (Vec::new(), 0),
    ] {
        assert_eq!((crc32c(&data), crc_by_bits(&data)), (expected, expected), "{data:?}");
    }
    // Undoes the mask of LevelDB's log format.
    let crc = crc32c(b"foo");
    let back = masked(crc).wrapping_sub(0xa282_ead8);
    assert!(masked(crc) != crc && back.rotate_left(15) == crc);
}

#[test]
fn tags_match_transformers() {
    for (key, expected) in [
        ("loss", "train/loss"),
        ("learning_rate", "train/learning_rate"),
        ("rewards/chosen", "train/rewards/chosen"),
        ("eval_loss", "eval/loss"),
        ("eval_rewards/accuracies/intra", "eval/rewards/accuracies/intra"),
        ("test_loss", "test/loss"),
        ("evaluation", "train/evaluation"),
        ("mean_token_logp", "train/mean_token_logp"),
    ] {
        assert_eq!(tag(key), expected);
    }
}

#[test]
fn every_number_reads_back_and_strings_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(dir.path(), 1_700_000_000.5, None).unwrap();
    let long = "a/".repeat(100);
    let values = serde_json::json!({
        "time": 5.0, "step": 3, "loss": 0.1, "eval_loss": -2.5e-30, "kind": "train", "grad_norm": "inf", "x": "NaN",
        "ids": [1], "skipped_steps": 0, (long.clone()): 1e10,
    });
    writer.scalars(u64::from(u32::MAX) + 7, 1_700_000_001.25, values.as_object().unwrap()).unwrap();
    let files = list(dir.path()).unwrap();
    let name = files[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert!(
        name.starts_with("events.out.tfevents.1700000000.") && name.ends_with(&format!(".{}.0", std::process::id()))
    );
    let [first, second] = &events(&files[0])[..] else { panic!("two events") };
    assert_eq!((first.wall_time, first.starts_session), (1_700_000_000.5, false));
    assert_eq!((second.wall_time, second.step), (1_700_000_001.25, u64::from(u32::MAX) + 7));
    assert!(second.scalars["train/x"].is_nan());
    let expected = [("train/loss", 0.1), ("eval/loss", -2.5e-30), ("train/grad_norm", f32::INFINITY)];
    for (tag, value) in expected.into_iter().chain([("train/skipped_steps", 0.0), (&*tag(&long), 1e10)]) {
        assert_eq!(second.scalars[tag], value, "{tag}");
    }
    assert_eq!(second.scalars.len(), 6);
    // The name of a newer file sorts last, even if both files are from the same second or the clock was set
    // back.
    for time in [1_700_000_000.9, 12.0] {
        drop(EventWriter::create(dir.path(), time, Some(4)).unwrap());
        let last = list(dir.path()).unwrap().pop().unwrap();
        let session = &events(&last)[1];
        assert_eq!((session.step, session.starts_session, session.wall_time), (5, true, time));
    }
    assert_eq!(list(dir.path()).unwrap().len(), 3);
}

/// Scalars of a run folder by tag and step, as TensorBoard shows them: a session start drops
/// earlier values from its step on.
fn shown(run: &Path) -> BTreeMap<(String, u64), f32> {
    let mut all = BTreeMap::new();
    for event in list(run).unwrap().iter().flat_map(|path| events(path)) {
        if event.starts_session {
            all.retain(|(_, step), _| *step < event.step);
        }
        all.extend(event.scalars.into_iter().map(|(tag, value)| ((tag, event.step), value)));
    }
    all
}

#[test]
fn event_files_of_a_resumed_run_match_its_metrics() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file groups.jsonl --eval-file pairs.jsonl --eval-steps 2 --logging-steps 1 \
               --save-steps 3 --output-dir out --max-steps 6 --learning-rate 1e-3 --quiet";
    bench.run(run).ok();
    assert_eq!(list(&bench.at("out")).unwrap().len(), 1);
    // Restores the folder of a run that was killed after step 6, before it saved a checkpoint.
    std::fs::remove_dir_all(bench.at("out/checkpoint-6")).unwrap();
    bench.run(&format!("{run} --resume-from-checkpoint true")).ok();
    let files = list(&bench.at("out")).unwrap();
    assert_eq!(files.len(), 2);
    let second = events(&files[1]);
    assert!(second[1].starts_session && second[1].step == 4 && second[2].step == 4);

    let shown = shown(&bench.at("out"));
    let mut expected = BTreeMap::new();
    for row in bench.rows("out/metrics.jsonl").iter().filter(|row| row["kind"] != "event") {
        for (key, value) in row.as_object().unwrap() {
            let Some(value) = value.as_f64().filter(|_| !["schema", "step", "time"].contains(&key.as_str())) else {
                continue;
            };
            let name = key.strip_prefix("eval_").map_or(format!("train/{key}"), |name| format!("eval/{name}"));
            expected.insert((name, row["step"].as_u64().unwrap()), value as f32);
        }
    }
    assert_eq!(shown, expected);
    for tag in ["train/loss", "train/learning_rate", "train/grad_norm", "train/rewards/chosen", "eval/loss"] {
        assert!(shown.contains_key(&(tag.to_owned(), 6)), "{tag}");
    }
    assert_eq!(shown.keys().filter(|(tag, _)| tag == "train/loss").count(), 6);
    assert_eq!(shown.keys().filter(|(tag, _)| tag == "eval/loss").map(|k| k.1).collect::<Vec<_>>(), [0, 2, 4, 6]);
}

#[test]
fn report_to_selects_the_logs_and_removes_those_of_an_old_run() {
    let bench = Bench::new();
    let run = |rest: &str| {
        format!(
            "reward --model model --train-file pairs.jsonl --eval-file pairs.jsonl --max-steps 1 --output-dir out \
             --overwrite-output-dir {rest}"
        )
    };
    let found = || {
        let has = |name: &str| bench.at("out").join(name).exists();
        (list(&bench.at("out")).unwrap().len(), has("metrics.jsonl"), has("eval_scores.jsonl"), has("report.html"))
    };
    for (flag, expected) in [
        ("", (1, true, true, true)),
        ("--report-to tensorboard", (1, false, false, false)),
        ("--report_to jsonl", (0, true, true, true)),
        ("--report-to tensorboard,jsonl", (1, true, true, true)),
        ("--report-to jsonl tensorboard", (1, true, true, true)),
        ("--report-to none", (0, false, false, false)),
        ("--report-to all", (1, true, true, true)),
    ] {
        bench.run(&run(flag)).ok();
        assert_eq!(found(), expected, "{flag}");
        let names: &Value = &bench.json("out/run.json")["config"]["report_to"];
        assert_eq!(names.as_array().unwrap().contains(&"jsonl".into()), expected.1, "{flag}");
    }
    let before = bench.listing();
    bench.run(&run("--report-to none,jsonl")).fails(2, &["--report-to", "none excludes other values"]);
    bench.run(&run("--report-to tensorboard,all")).fails(2, &["--report-to", "all excludes other values"]);
    bench.run(&run("--report-to wandb")).fails(2, &["wandb", "mapl uploads to no service; use tensorboard"]);
    assert_eq!(bench.listing(), before);
}
