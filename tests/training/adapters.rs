//! PEFT adapters, merged with their bases at load, against the values that PEFT computes with an unmerged
//! adapter (`tests/golden/adapters.py`).

use std::path::Path;

use common::golden::{self, ADAPTER_CASES, LanguageSequence, RewardSequence, adapter_case};
use mapl::backend::Backend;
use mapl::backend::cpu::Cpu;
use mapl::backend::reference::Reference;
use mapl::data::pack::Scoring;
use mapl::model::adapter::{AdapterConfig, write_adapter};
use mapl::model::config::{ModelConfig, StoredDtype};
use mapl::model::decoder::Model;
use mapl::model::store::load;
use mapl::model::weights::LoadAs;

use crate::golden::{LOGP, close, forward, single};

fn model<B: Backend>(backend: &B, folder: &Path) -> Model<B> {
    load(backend, folder, ModelConfig::read(folder).unwrap(), LoadAs::Exact, 0).unwrap().model
}

/// Relative tolerance 2e-5, as for whole models: the fixtures are f32 results of PyTorch.
fn log_probs<B: Backend>(backend: &B, folder: impl Fn(&str) -> std::path::PathBuf) {
    for name in ADAPTER_CASES {
        let case = adapter_case::<LanguageSequence>(name);
        let (mut merged, mut base) =
            (model(backend, &folder(&case.adapter)), model(backend, &golden::path(&case.base)));
        for (i, sequence) in case.sequences.iter().enumerate() {
            let group = single(&sequence.prompt, &sequence.response);
            let got = forward(backend, &mut merged, &[&group], LOGP);
            for (t, expected) in sequence.logps.iter().enumerate() {
                close(&format!("{name} sequence {i} token {t}"), got.logp[t], *expected, 2e-5, 0.0);
            }
            // The base must give different scores; otherwise the fixtures could not tell a merged model from
            // its base.
            let of_base = forward(backend, &mut base, &[&group], LOGP).score[0];
            assert!((of_base - sequence.logp).abs() > 1e-2, "{name} sequence {i}: {of_base} {}", sequence.logp);
        }
    }
}

fn rewards<B: Backend>(backend: &B, folder: &Path) {
    let case = adapter_case::<RewardSequence>("reward");
    let mut model = model(backend, folder);
    for (i, sequence) in case.sequences.iter().enumerate() {
        let group = single(&sequence.prompt, &sequence.response);
        let got = forward(backend, &mut model, &[&group], Scoring::Reward);
        close(&format!("reward of sequence {i}"), got.score[0], sequence.reward, 0.0, 2e-4);
    }
}

#[test]
fn merged_adapters_score_as_peft_does() {
    log_probs(&Cpu::new(), golden::path);
    log_probs(&Reference, golden::path);
}

#[test]
fn merged_reward_adapters_score_as_peft_does() {
    let folder = golden::path("adapters/reward");
    rewards(&Cpu::new(), &folder);
    rewards(&Reference, &folder);
}

/// Copies an adapter through the writer.
fn rewritten(name: &str, into: &Path) {
    let from = golden::path("adapters").join(name);
    let config = AdapterConfig::read(&from).unwrap();
    let base = golden::path(&format!("adapters/{name}")).join(config.base_model_name_or_path.clone().unwrap());
    let model = ModelConfig::read(&from).unwrap();
    let config = AdapterConfig { base_model_name_or_path: Some(base.to_str().unwrap().into()), ..config };
    let stored = golden::tensors(&format!("adapters/{name}/adapter_model.safetensors"));
    let tensors = config.tensors(&model).unwrap();
    assert_eq!(tensors.len(), stored.len(), "{name}");
    write_adapter(into, &config, &tensors, StoredDtype::F32, &mut |tensor, offset, out| {
        out.copy_from_slice(&stored[&tensor.name].values[offset..offset + out.len()]);
        Ok(())
    })
    .unwrap();
    assert_eq!(AdapterConfig::read(into).unwrap(), config, "{name}");
}

#[test]
fn a_written_adapter_is_the_one_that_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |adapter: &str| dir.path().join(Path::new(adapter).file_name().unwrap());
    for name in ADAPTER_CASES.into_iter().chain(["reward"]) {
        std::fs::create_dir(at(name)).unwrap();
        rewritten(name, &at(name));
        let bytes = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let (own, peft) = (bytes(&at(name)), bytes(&golden::path("adapters").join(name)));
        assert_eq!(own.len().abs_diff(peft.len()) / 64, 0, "{name}: {} {}", own.len(), peft.len());
    }
    log_probs(&Cpu::new(), |adapter| at(adapter));
    rewards(&Cpu::new(), &at("reward"));
}
