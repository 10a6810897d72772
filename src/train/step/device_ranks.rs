//! Steps of two ranks that sum and gather with NCCL calls, on emulated devices. The weights are bit-identical
//! to those of ranks that exchange everything through the host, and the log holds exactly the expected calls.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::Trainer;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::Element;
use crate::backend::kernels::nccl::{Calls, Number};
use crate::backend::{Backend, View};
use crate::loss::objective::{LossOptions, Method};
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::model::shards::Sharding;
use crate::model::{presets, store};
use crate::optim::adamw::AdamWSettings;
use crate::ranks::collective::{Collective, shard_of};
use crate::ranks::nccl::{Nccl, emulator};
use crate::ranks::rehearsal::Rehearsal;
use crate::ranks::stand_in::{Call, Entry, STREAM, StandIn};
use crate::train::memory::Sharded;
use crate::train::sharded_steps::pair;

/// A rank, and the stand-in that logs its NCCL calls if it has a device.
type Rank = (&'static dyn Collective, Option<Arc<StandIn>>);

/// Returns two ranks on emulated devices; `None` if the emulator is unavailable. The memory that the test
/// leaks is small.
fn on_devices() -> Option<Vec<Rank>> {
    StandIn::ranks(2)
        .into_iter()
        .map(|calls| {
            let ranks: &'static Nccl<_> = Box::leak(Box::new(Nccl::new(emulator()?, calls.clone()).unwrap()));
            Some((ranks as &dyn Collective, Some(calls)))
        })
        .collect()
}

fn on_host() -> Vec<Rank> {
    let ranks = Rehearsal::ranks(2).into_iter();
    ranks.map(|rank| (&*Box::leak(Box::new(rank)) as &dyn Collective, None)).collect()
}

/// Weights as bits, gradient norms and losses as bits, and the NCCL calls of a rank.
type Trained = (Vec<u64>, Vec<u64>, Vec<Entry>);

/// A model of one layer.
pub(super) fn config(method: Method) -> ModelConfig {
    let mut config = presets::config("qwen2-tiny").unwrap();
    (config.vocab, config.layers) = (64, 1);
    if method == Method::Reward { config.into_reward(0).unwrap() } else { config }
}

/// Two steps on every rank. In the second step, rank 1 has no groups.
fn trained<A: Element>(ranks: Vec<Rank>, sharded: Sharded) -> Vec<Trained> {
    let work = |(ranks, calls): Rank| {
        let as_calls = calls.clone().map(|calls| calls as Arc<dyn Calls>);
        let backend = Kernels::<_, A>::new(emulator().unwrap()).with_ranks(as_calls);
        let sharding = (sharded == Sharded::Weights).then(|| Sharding::over(ranks));
        let policy = store::random_on(&backend, config(Method::Reward), 3, sharding).unwrap();
        let loss = LossOptions::default().resolve(Method::Reward, [1.0; 3], false).unwrap();
        let settings = AdamWSettings { max_grad_norm: 0.5, ..AdamWSettings::default() };
        let settings = (settings, sharded != Sharded::Nothing);
        let mut trainer = Trainer::on_ranks(ranks, &backend, (policy, None), loss, settings).unwrap();
        let (pairs, mut losses) = ([0, 1, 2].map(pair), Vec::new());
        let own = [vec![&pairs[ranks.rank()]], if ranks.rank() == 0 { vec![&pairs[2]] } else { Vec::new() }];
        for groups in own {
            let micro_batches = if groups.is_empty() { Vec::new() } else { vec![groups] };
            let report = trainer.step(&micro_batches, 1e-2).unwrap();
            assert!(report.update.applied && report.odd_ranks.is_empty());
            losses.extend([report.update.grad_norm.to_bits(), report.tally.kinds[0].loss.to_bits()]);
        }
        let len = trainer.policy.trained().len;
        let mut weights = vec![0.0; len];
        let log = calls.map_or(Vec::new(), |calls| calls.take_log());
        match sharded {
            Sharded::Weights => trainer.policy.read_weights(&backend, &(0..len), &mut weights).unwrap(),
            _ => backend.read_act(View::first(trainer.policy.trained_weights(), len), &mut weights).unwrap(),
        }
        (weights.iter().map(|x| x.to_bits()).collect(), losses, log)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Log entries of a collective that runs after all earlier ops and before all later ones.
pub(super) fn collective(ticket: u64, calls: Vec<Entry>) -> Vec<Entry> {
    let (before, behind) = (Entry::Fork { ops: 0 }, [Entry::Mark(ticket), Entry::Settle { ticket, ops: 0 }]);
    [before].into_iter().chain(calls).chain(behind).collect()
}

pub(super) fn call(name: &'static str, len: usize, number: Number, root: Option<usize>, offset: i64) -> Entry {
    Entry::Call(Call { name, len, number, root, stream: STREAM, offset })
}

/// Ranges of the gradient by unit in the order of the backward: final norm, layer, embedding. The score
/// weight of a reward model is between the matrices and the other parameters of the layer.
pub(super) fn spans(layout: &Layout) -> Vec<Range<usize>> {
    let (layer, norm) = (&layout.layers[0], layout.final_norm.start..layout.len);
    let embedding = 0..layer.qkv.start;
    let Some(score) = &layout.score else { return vec![norm.clone(), layer.qkv.start..norm.start, embedding] };
    let (matrices, rest) = (layer.qkv.start..score.start, layer.input_norm.start..norm.start);
    vec![score.start..rest.start, norm, matrices, rest, embedding]
}

/// Log entries of sums that begin during the backward, in the order of the backward. Ops after the backward
/// wait for all of them.
pub(super) fn sums(first: u64, of_spans: Vec<Vec<Entry>>) -> Vec<Entry> {
    let tickets = || (first..).zip(&of_spans).map(|(ticket, _)| ticket);
    let begun = |(ticket, calls): (u64, &Vec<Entry>)| {
        [Entry::Fork { ops: 0 }].into_iter().chain(calls.clone()).chain([Entry::Mark(ticket)]).collect::<Vec<_>>()
    };
    let settled = tickets().map(|ticket| Entry::Settle { ticket, ops: 0 });
    (first..).zip(&of_spans).flat_map(begun).chain(settled).collect()
}

/// The NCCL calls of two steps with sharded optimiser state, without host messages.
fn sharded_steps(rank: usize, layout: &Layout, number: Number) -> Vec<Entry> {
    let len = layout.len;
    let each = shard_of(len, 0, 2).len();
    let rest = len - 2 * each;
    let group = |calls: [Option<Entry>; 2]| {
        let calls = calls.into_iter().flatten();
        [Entry::GroupStart].into_iter().chain(calls).chain([Entry::GroupEnd]).collect::<Vec<_>>()
    };
    let rest_of = |name, number| (rest > 0).then(|| call(name, rest, number, Some(1), 0));
    let at = |len: usize, number: Number| (rank * len * number.bytes()) as i64;
    // Each range is reduced to the ranks that hold its shards.
    let gradient = |range: &Range<usize>| {
        let [low, high] = [range.start.min(each)..range.end.min(each), range.start.max(each)..range.end.max(each)];
        let reduced = |root, len: usize| (len > 0).then(|| call("reduce", len, Number::F32, Some(root), 0));
        if high.len() < low.len() {
            return group([reduced(0, low.len()), reduced(1, high.len())]);
        }
        let both = || call("reduce_scatter", low.len(), Number::F32, None, at(low.len(), Number::F32));
        group([(!low.is_empty()).then(both), reduced(1, high.len() - low.len())])
    };
    let step = |step: u64| {
        let norms = call("all_gather", 1, Number::F32, None, -at(1, Number::F32));
        let weights = call("all_gather", each, number, None, -at(each, number));
        [
            sums(7 * step, spans(layout).iter().map(gradient).collect()),
            collective(7 * step + 5, group([Some(norms), None])),
            collective(7 * step + 6, group([Some(weights), rest_of("broadcast", number)])),
        ]
    };
    [step(0), step(1)].into_iter().flatten().flatten().collect()
}

/// Returns the log without host messages, which are calls on bytes.
pub(super) fn on_buffers(log: &[Entry]) -> Vec<Entry> {
    let is_message = |entry: &Entry| matches!(entry, Entry::Call(call) if call.number == Number::Byte);
    log.iter().filter(|entry| !is_message(entry)).cloned().collect()
}

fn compare<A: Element>(number: Number) {
    let layout = Layout::new(&config(Method::Reward));
    for sharded in [Sharded::Optimizer, Sharded::Nothing] {
        let Some(ranks) = on_devices() else { return };
        let (on_devices, on_host) = (trained::<A>(ranks, sharded), trained::<A>(on_host(), sharded));
        for (rank, (device, host)) in on_devices.iter().zip(&on_host).enumerate() {
            assert!(device.0 == host.0 && device.0 == on_devices[0].0, "rank {rank}: other weights, {sharded:?}");
            assert_eq!(device.1, host.1);
            assert_eq!(device.0.len(), layout.len);
            let expected = match sharded == Sharded::Optimizer {
                true => sharded_steps(rank, &layout, number),
                false => {
                    let sum = |range: &Range<usize>| vec![call("all_reduce", range.len(), Number::F32, None, 0)];
                    [0, 5].map(|first| sums(first, spans(&layout).iter().map(sum).collect())).concat()
                }
            };
            assert_eq!(on_buffers(&device.2), expected, "rank {rank}");
        }
    }
}

#[test]
fn two_ranks_on_devices_train_the_weights_of_two_through_the_host() {
    compare::<f32>(Number::F32);
}

#[test]
fn bf16_weights_are_gathered_as_they_are() {
    compare::<bf16>(Number::Bf16);
}

/// The gathers and sums of sharded weights are also device calls. Every rank makes the same calls, whether it
/// has a batch or not.
#[test]
fn sharded_weights_are_gathered_and_summed_by_the_device() {
    let Some(ranks) = on_devices() else { return };
    let (on_devices, on_host) = (trained::<f32>(ranks, Sharded::Weights), trained::<f32>(on_host(), Sharded::Weights));
    for (device, host) in on_devices.iter().zip(&on_host) {
        assert!(device.0 == host.0 && device.0 == on_devices[0].0, "other weights");
        assert_eq!(device.1, host.1);
    }
    let calls = |log: &[Entry]| -> Vec<(&'static str, usize, Option<usize>)> {
        let of = |entry: Entry| match entry {
            Entry::Call(call) => Some((call.name, call.len, call.root)),
            _ => None,
        };
        on_buffers(log).into_iter().filter_map(of).collect()
    };
    assert_eq!(calls(&on_devices[0].2), calls(&on_devices[1].2));
    let count = |name: &str| calls(&on_devices[0].2).iter().filter(|(of, ..)| *of == name).count();
    // In each of two steps five ranges are gathered and summed, and the norms are gathered.
    assert_eq!((count("all_gather"), count("reduce_scatter"), count("all_reduce")), (12, 10, 0));
}
