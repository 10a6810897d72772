//! Compares one rank that has joined NCCL, on an emulated device, with a single-process run: losses, norms,
//! and every file of a checkpoint have the same bytes. Each gradient, and with sharded optimiser state each
//! weight, passes through an NCCL call, and the run makes only these calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use serde_json::json;

use super::Trainer;
use super::device_ranks::{call, collective, config, on_buffers, spans, sums};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::Element;
use crate::backend::kernels::nccl::{Calls, Number};
use crate::data::tokenizer::train_bpe;
use crate::files::files_below;
use crate::loss::objective::{LossOptions, Method};
use crate::model::layout::Layout;
use crate::model::lora::{self, LoraSpec};
use crate::model::store;
use crate::optim::adamw::AdamWSettings;
use crate::ranks::collective::{Alone, Collective};
use crate::ranks::nccl::{Nccl, emulator};
use crate::ranks::stand_in::{Entry, StandIn};
use crate::train::checkpoint::{self, RunState};
use crate::train::sharded_steps::pair;

/// Micro-batches of a step.
const ACCUMULATION: usize = 2;

/// Number of steps: the first one of a shape runs its ops, the second captures them, the third replays them.
const STEPS: usize = 3;

/// Seeds of the policy and of the reference.
const SEEDS: [u64; 2] = [3, 4];

/// Configuration of a training run.
#[derive(Clone, Copy, Debug)]
struct Steps {
    method: Method,
    shard: bool,
    lora: bool,
}

/// Losses and norms as bits, and the bytes of a checkpoint by file.
type Trained = (Vec<u64>, BTreeMap<String, Vec<u8>>);

impl Steps {
    /// Trains one rank, with NCCL calls or in a single-process run.
    fn train<A: Element>(self, calls: Option<Arc<StandIn>>) -> Trained {
        let ranks: &'static dyn Collective = match &calls {
            Some(calls) => Box::leak(Box::new(Nccl::new(emulator().unwrap(), calls.clone()).unwrap())),
            None => &Alone,
        };
        assert_eq!((ranks.size(), ranks.is_alone()), (1, calls.is_none()));
        let as_calls = calls.map(|calls| calls as Arc<dyn Calls>);
        let backend = Kernels::<_, A>::new(emulator().unwrap()).with_ranks(as_calls);
        let config = config(self.method);
        let [mut policy, frozen] = SEEDS.map(|seed| store::random_on(&backend, config.clone(), seed, None).unwrap());
        if self.lora {
            let spec = LoraSpec::new(&config, 2, 4, false, &[]).unwrap();
            lora::draw(&backend, &mut policy, spec, 5).unwrap();
        }
        let frozen = (self.method == Method::Dpo).then_some(frozen);
        let options = LossOptions { beta: frozen.is_some().then_some(0.5), ..LossOptions::default() };
        let loss = options.resolve(self.method, [1.0; 3], false).unwrap();
        // Every gradient is clipped, so every weight depends on the bits of the norm.
        let settings = AdamWSettings { max_grad_norm: 1e-3, weight_decay: 0.1, ..AdamWSettings::default() };
        let mut trainer = Trainer::on_ranks(ranks, &backend, (policy, frozen), loss, (settings, self.shard)).unwrap();
        let groups: Vec<_> = (0..STEPS * ACCUMULATION).map(pair).collect();
        trainer.replay_steps(true);
        let limits = trainer.limits(&groups, 1).unwrap();
        trainer.reserve(&limits, ACCUMULATION).unwrap();
        let mut numbers = Vec::new();
        for of_step in groups.chunks(ACCUMULATION) {
            let micro_batches: Vec<_> = of_step.iter().map(|group| vec![group]).collect();
            let report = trainer.step(&micro_batches, 1e-2).unwrap();
            assert!(report.update.applied && report.odd_ranks.is_empty());
            assert!(report.update.grad_norm > 1e-3, "{}", report.update.grad_norm);
            numbers.extend([report.update.grad_norm, report.tally.kinds[0].loss].map(f64::to_bits));
        }
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokenizer");
        let mut tokenizer = train_bpe(["fern and moss".to_owned()].into_iter(), 300).unwrap();
        tokenizer.save_new(&tokens).unwrap();
        let saved = checkpoint::save(&trainer, &tokenizer, folder.path(), RunState::default(), &json!({})).unwrap();
        (numbers, bytes_below(&saved))
    }

    /// The NCCL calls of all steps, without host messages.
    fn expected(self, layout: &Layout, number: Number) -> Vec<Entry> {
        let grouped = |entry: Entry| match self.shard {
            true => vec![Entry::GroupStart, entry, Entry::GroupEnd],
            false => vec![entry],
        };
        let name = if self.shard { "reduce_scatter" } else { "all_reduce" };
        let sum = |len: usize| grouped(call(name, len, Number::F32, None, 0));
        let of_spans: Vec<_> = spans(layout).iter().map(|span| sum(span.len())).collect();
        let gather = |ticket| collective(ticket, grouped(call("all_gather", layout.len, number, None, 0)));
        let each = of_spans.len() as u64 + u64::from(self.shard);
        let step = |step: u64| {
            let sums = sums(step * each, of_spans.clone());
            let gathered = if self.shard { gather(step * each + each - 1) } else { Vec::new() };
            [sums, gathered].concat()
        };
        (0..STEPS as u64).flat_map(step).collect()
    }
}

fn bytes_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |path: &std::path::PathBuf| {
        let name = path.strip_prefix(folder).unwrap().display().to_string();
        (name, std::fs::read(path).unwrap())
    };
    files_below(folder).unwrap().iter().map(read).collect()
}

fn compare<A: Element>(number: Number) {
    let Some(_) = emulator() else { return };
    for method in [Method::Reward, Method::Dpo] {
        let steps = Steps { method, shard: false, lora: false };
        let (numbers, files) = steps.train::<A>(None);
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        for part in ["model.safetensors", "state/optimizer-rank00000.safetensors", "state/state.json"] {
            assert!(names.contains(&part), "{names:?}");
        }
        let layout = Layout::new(&config(method));
        for shard in [false, true] {
            let (steps, calls) = (Steps { shard, ..steps }, StandIn::ranks(1).remove(0));
            let joined = steps.train::<A>(Some(calls.clone()));
            assert_eq!(joined.0, numbers, "{steps:?}");
            assert_eq!(joined.1.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
            for (name, bytes) in &files {
                assert!(joined.1[name] == *bytes, "{steps:?}: {name} differs");
            }
            let log = calls.take_log();
            assert_eq!(on_buffers(&log), steps.expected(&layout, number), "{steps:?}");
            // The results of a step are one host message of two calls: lengths, then bytes.
            assert_eq!(log.len() - on_buffers(&log).len(), 2 * STEPS, "{steps:?}");
        }
    }
}

#[test]
fn in_f32_it_trains_the_bytes_of_a_rank_that_is_alone() {
    compare::<f32>(Number::F32);
}

#[test]
fn in_bf16_it_trains_the_bytes_of_a_rank_that_is_alone() {
    compare::<bf16>(Number::Bf16);
}

/// Gradients of adapters are summed in one call after the backward, which is captured as a graph.
#[test]
fn adapters_train_the_bytes_of_a_rank_that_is_alone() {
    let Some(_) = emulator() else { return };
    let steps = Steps { method: Method::Reward, shard: false, lora: true };
    let alone = steps.train::<f32>(None);
    for shard in [false, true] {
        let calls = StandIn::ranks(1).remove(0);
        let steps = Steps { shard, ..steps };
        assert!(steps.train::<f32>(Some(calls.clone())) == alone, "{steps:?}: other bytes");
        let named = |entry: Entry| match entry {
            Entry::Call(call) => Some(call.name),
            _ => None,
        };
        let names: Vec<&str> = on_buffers(&calls.take_log()).into_iter().filter_map(named).collect();
        let of_step: &[&str] = if shard { &["reduce_scatter", "all_gather"] } else { &["all_reduce"] };
        assert_eq!(names, of_step.repeat(STEPS));
    }
}
