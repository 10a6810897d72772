//! Device faults: whichever call fails, a run ends with an error that has the right exit code and
//! names the last checkpoint. Every checkpoint on disk is complete.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::fixtures::{groups, random_model, tiny_config};
use common::observed::Observed;
use half::bf16;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Emulator;
use mapl::data::tokenizer::{Tokenizer, train_bpe};
use mapl::loss::objective::{LossOptions, Method};
use mapl::optim::adamw::AdamWSettings;
use mapl::optim::schedule::{Scheduler, Shape};
use mapl::train::checkpoint;
use mapl::train::logs::ReportTo;
use mapl::train::run::{RunData, RunSettings, RunSummary, train};
use mapl::train::step::Trainer;
use mapl::{Error, Result};

fn settings(output_dir: &Path) -> RunSettings {
    RunSettings {
        output_dir: output_dir.to_path_buf(),
        micro_batch: 2,
        accumulation: 2,
        max_steps: Some(5),
        epochs: 1.0,
        learning_rate: 1e-3,
        scheduler: Scheduler::Constant,
        warmup_steps: 0,
        shuffle: Some(1),
        schedule: Shape::Constant,
        logging_steps: Some(1),
        logging_epochs: false,
        eval_steps: Some(4),
        eval_epochs: false,
        save_steps: Some(2),
        save_epochs: false,
        save_minutes: None,
        save_at_end: true,
        save_total_limit: Some(1),
        keep_every: None,
        best: None,
        max_skipped_steps: u64::MAX,
        quiet: true,
        save_dtype: mapl::model::config::StoredDtype::F32,
        report_to: ReportTo { tensorboard: false, jsonl: true },
        observed: None,
    }
}

/// Runs training and makes device call number `fault`, counted from the end of loading, fail. Also returns
/// the number of calls before the end of loading.
fn run(tokenizer: &Tokenizer, output_dir: &Path, fault: Option<usize>) -> (Result<RunSummary>, Observed, usize) {
    // Hardly any kernel runs: host code must not depend on their results, and there are thousands
    // of runs.
    let backend = Kernels::<_, bf16>::new(Observed::new(Emulator::new().unwrap(), false));
    let config = tiny_config("qwen2", false);
    let loss = LossOptions { beta: Some(0.1), ..LossOptions::default() }.resolve(Method::Dpo, [1.0; 3], false).unwrap();
    let (policy, reference) = (random_model(&backend, &config, 1), random_model(&backend, &config, 2));
    let data = RunData {
        keep_folder: None,
        train: [groups(), groups(), groups()].concat(),
        eval: groups(),
        figures: None,
        tokenizer,
        redraw: None,
        memory: None,
        same_weights: true,
        resume: None,
        fingerprint: Vec::new(),
    };
    let loading = backend.device().log().len();
    if let Some(fault) = fault {
        backend.device().fail(fault);
    }
    std::fs::create_dir_all(output_dir).unwrap();
    let done =
        Trainer::new(&backend, policy, Some(reference), loss, AdamWSettings::default()).and_then(|mut trainer| {
            trainer.replay_steps(true);
            train(trainer, data, &settings(output_dir))
        });
    (done, backend.into_device(), loading)
}

#[test]
fn any_failing_call_ends_the_run_with_an_error_and_complete_checkpoints() {
    if let Err(why) = Emulator::new() {
        assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
        println!("SKIPPED: {why}");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("tokenizer");
    std::fs::create_dir(&folder).unwrap();
    let texts = (0..40).map(|i| format!("Name bird {i}. The wren sings at night."));
    train_bpe(texts, 300).unwrap().save_new(&folder).unwrap();
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let (done, device, loading) = run(&tokenizer, &scratch.path().join("whole"), None);
    assert_eq!(done.unwrap().steps, 5);
    let calls = &device.log()[loading..];
    let names: BTreeSet<_> = calls.iter().copied().collect();
    let faults = if common::full() { (0..calls.len()).collect() } else { sample(calls) };
    println!("{} of {} calls fail, of {names:?}", faults.len(), calls.len());
    let next = AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while let Some(&fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let folder = scratch.path().join(format!("run-{fault}"));
                    let (done, device, _) = run(&tokenizer, &folder, Some(fault));
                    assert_eq!(device.failed(), Some(calls[fault]), "call {fault}");
                    failed.lock().unwrap().insert(calls[fault]);
                    check(&folder, fault, calls[fault], done);
                    std::fs::remove_dir_all(&folder).unwrap();
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert_eq!(failed, names);
}

/// Selects every 13th call, and a dozen calls of each name, spread from the first to the last.
fn sample(calls: &[&str]) -> Vec<usize> {
    let mut chosen: BTreeSet<usize> = (0..calls.len()).step_by(13).collect();
    for name in calls.iter().copied().collect::<BTreeSet<_>>() {
        let all: Vec<usize> = (0..calls.len()).filter(|&call| calls[call] == name).collect();
        chosen.extend((0..12).map(|i| all[i * (all.len() - 1) / 11]));
    }
    chosen.into_iter().collect()
}

fn check(folder: &Path, fault: usize, call: &str, done: Result<RunSummary>) {
    let error = done.expect_err(call);
    let text = format!("call {fault}, {call}: {error}");
    match (call, &error) {
        ("allocate" | "upload_buffer" | "readback_buffer", Error::Memory(_)) => assert_eq!(error.exit_code(), 7),
        (_, Error::Device(_)) => assert_eq!(error.exit_code(), 5),
        _ => panic!("{text}"),
    }
    assert!(text.contains("was made to fail"), "{text}");
    let complete = checkpoint::list(folder);
    for (_, path) in &complete {
        checkpoint::verify(path).unwrap();
    }
    if let Some((_, last)) = complete.last() {
        assert!(text.contains(&last.display().to_string()), "{text}: {} is not named", last.display());
    }
    // Only a finished run leaves final weights.
    assert!(!folder.join("model.safetensors").exists(), "{text}");
    // The next run removes the remains of a failed save.
    checkpoint::clean(folder).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let known = complete.iter().any(|(_, checkpoint)| *checkpoint == path);
        assert!(known || path.is_file(), "{text}: {} remains", path.display());
    }
}
