//! Predicted step on several GPUs: bytes and time of every collective, the time that overlaps with forward
//! and backward, and the resulting weak scaling. Every figure is computed; none was measured.
//!
//! ```text
//! collective   ring of n GPUs: (n-1)/n of the bytes pass every link, twice for an all-reduce; all of them
//!              for a reduce to one GPU; 8.4 us per call, 3.4 us per step within a host, 14 us between hosts
//! compute      the step's predicted ops, split over layers; the update of a shard needs 1/n of the time
//! two queues   compute, and collectives in their order:
//!   whole            all-reduce of a unit's gradient after its backward; update of all parameters
//!   shard optimizer  reduce of a unit's gradient after its backward, to the GPU with its shard; norms;
//!                    update; all-gather of the weights, not overlapped
//!   shard weights    all-gather of a unit before its forward and again before its backward, one unit ahead;
//!                    reduce-scatter of its gradient; the frozen reference is gathered likewise
//!   adapters         only their gradients are summed, in one collective after the backward; a sharded base is
//!                    gathered as above
//! ```
//!
//! The latencies are those of NCCL's tuning model for a ring with the Simple protocol. A unit is the
//! embedding, a decoder layer, or the final norm with an untied head. Gradients are f32, weights bf16. The
//! plan does not count host messages after a step, other users of the network, or SMs that collectives take
//! from compute.

mod queues;

use std::collections::VecDeque;
use std::fmt::Write as _;

use serde::Serialize;

use super::StepPlan;
use crate::model::config::ModelConfig;
use crate::model::layout::Layout;
use crate::terminal::counted;
use crate::{Error, Result};
use queues::{CALL_SECONDS, Kind, LINK_STEP_SECONDS, NETWORK_STEP_SECONDS, Timeline};

/// GPUs per host in the scaling table.
const HOST_CARDS: usize = 8;

/// Rates between GPUs, in bytes per second in one direction for each GPU. They are inputs of the plan and are
/// not measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Fabric {
    /// Within a host.
    pub link: f64,
    /// Between hosts, if there are several.
    pub network: Option<f64>,
}

/// GPUs that share a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Ranks {
    pub ranks: usize,
    pub hosts: usize,
}

/// State that is sharded over the GPUs: nothing, the optimiser state, or the optimiser state and the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sharding {
    Whole,
    ShardOptimizer,
    ShardWeights,
}

impl Sharding {
    pub const ALL: [Self; 3] = [Self::Whole, Self::ShardOptimizer, Self::ShardWeights];

    fn name(self) -> &'static str {
        match self {
            Self::Whole => "--shard-optimizer off",
            Self::ShardOptimizer => "--shard-optimizer",
            Self::ShardWeights => "--shard-weights",
        }
    }
}

/// All calls of one collective in a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct CollectiveTime {
    pub collective: &'static str,
    pub calls: u64,
    /// Bytes of the buffers.
    pub bytes: u64,
    /// Bytes that each GPU sends.
    pub sent_bytes: u64,
    pub seconds: f64,
    /// Seconds in which a GPU only waits for the collective; its other seconds overlap with compute.
    pub exposed_seconds: f64,
}

/// Step with one sharding choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SharedStep {
    pub sharding: Sharding,
    pub collectives: Vec<CollectiveTime>,
    /// Seconds of all collectives, and the seconds in which a GPU only waits for them.
    pub collective_seconds: f64,
    pub exposed_seconds: f64,
    pub step_seconds: f64,
}

/// Row of the scaling table: step time and efficiency of each sharding choice. The efficiency is the pairs
/// per second, divided by those of one GPU times the number of GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Scaling {
    pub on: Ranks,
    pub step_seconds: [f64; 3],
    pub efficiency: [f64; 3],
}

/// The plan of several GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RanksPlan {
    pub on: Ranks,
    pub fabric: Fabric,
    pub steps: Vec<SharedStep>,
    pub scaling: Vec<Scaling>,
}

/// Number of parameters of each unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Units {
    layers: usize,
    layer: u64,
    embedding: u64,
    /// Final norm, and the head if it is not the embedding.
    head: u64,
    /// Number of adapter parameters, if the base weights are frozen.
    adapters: Option<u64>,
}

/// Seconds of one GPU's work.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    /// Forward of a layer of the frozen reference; 0 without one.
    frozen_layer: f64,
    forward_layer: f64,
    backward_layer: f64,
    /// Forward of the embedding, and forward and backward of heads and losses. They run before the backward
    /// of the layers.
    ends: f64,
    /// Gradient of the embedding.
    embedding_backward: f64,
    /// Gradient norm and update of all parameters.
    update: f64,
}

impl Units {
    fn of(config: &ModelConfig) -> Self {
        let layout = Layout::new(config);
        let in_layer = |name: &str| name.contains(".layers.") || name.contains(".h.");
        let elements = |keep: &dyn Fn(&str) -> bool| {
            let slots = layout.slots.iter().filter(|slot| keep(&slot.spec.name));
            slots.map(|slot| slot.spec.elements() as u64).sum::<u64>()
        };
        let layers = elements(&in_layer);
        let embedding = elements(&|name| !in_layer(name) && name.contains("embed"));
        Self {
            layers: config.layers,
            layer: layers / config.layers.max(1) as u64,
            embedding,
            head: elements(&|_| true) - layers - embedding,
            adapters: None,
        }
    }

    fn total(&self) -> u64 {
        self.layers as u64 * self.layer + self.embedding + self.head
    }

    /// Returns the gradient bytes of base weights, which are 0 with adapters.
    fn gradient(&self, elements: u64) -> u64 {
        if self.adapters.is_some() { 0 } else { GRADIENT * elements }
    }
}

impl Work {
    fn of(plan: &StepPlan, layers: usize) -> Self {
        let seconds = |keep: &dyn Fn(&str) -> bool| {
            plan.ops.iter().filter(|op| keep(&op.op)).map(|op| op.predicted_seconds).sum::<f64>()
        };
        let at_ends = |op: &str| {
            ["embedding", "head", "reward", "logprob", "preference", "segment"].iter().any(|s| op.starts_with(s))
        };
        let is_update = |op: &str| op == "adamw" || op == "grad_norm";
        let is_backward = |op: &str| op.ends_with("_bwd") || op.contains("_bwd_");
        let forward = seconds(&|op| !at_ends(op) && !is_update(op) && !is_backward(op)) / layers.max(1) as f64;
        // The forward ops are those of policy and reference, which have the same size; adapters add little
        // time.
        let frozen_layer = if plan.workload.dpo { forward / 2.0 } else { 0.0 };
        Self {
            frozen_layer,
            forward_layer: forward - frozen_layer,
            backward_layer: seconds(&|op| !at_ends(op) && is_backward(op)) / layers.max(1) as f64,
            ends: seconds(&|op| at_ends(op) && op != "embedding_bwd"),
            embedding_backward: seconds(&|op| op == "embedding_bwd"),
            update: seconds(&is_update),
        }
    }

    /// Returns the seconds of a step on one GPU.
    fn total(&self, layers: usize) -> f64 {
        let layer = self.frozen_layer + self.forward_layer + self.backward_layer;
        layers as f64 * layer + self.ends + self.embedding_backward + self.update
    }
}

/// Bytes per element of a gradient and of a weight.
const GRADIENT: u64 = 4;
const WEIGHT: u64 = 2;

const GATHER: &str = "all-gather of weights";
const NORMS: &str = "all-gather of norms";
const SCATTER: &str = "reduce-scatter of gradients";

/// Step with unsharded weights on every GPU.
fn step_of_whole_weights(sharding: Sharding, units: Units, work: Work, mut time: Timeline) -> SharedStep {
    let (name, kind) = match sharding {
        Sharding::Whole => ("all-reduce of gradients", Kind::AllReduce),
        _ => ("reduce of gradients", Kind::Reduce),
    };
    let layers = units.layers as f64;
    time.compute(layers * (work.frozen_layer + work.forward_layer) + work.ends);
    time.collective(name, kind, units.gradient(units.head));
    for _ in 0..units.layers {
        time.compute(work.backward_layer);
        time.collective(name, kind, units.gradient(units.layer));
    }
    time.compute(work.embedding_backward);
    time.now(name, kind, units.gradient(units.embedding));
    match sharding {
        Sharding::Whole => {
            time.now(name, kind, GRADIENT * units.adapters.unwrap_or(0));
            time.compute(work.update);
        }
        _ => {
            update_of_shards(units.adapters, work, &mut time);
            // With adapters, the base weights are frozen, so they are not gathered after an update.
            let changed = if units.adapters.is_some() { 0 } else { units.total() };
            time.now(GATHER, Kind::AllGather, WEIGHT * changed);
        }
    }
    time.end(sharding)
}

/// Adds the norms and the update of a shard. Adapters are unsharded on every GPU, so their gradients are
/// reduce-scattered before the update and their weights are gathered after it.
fn update_of_shards(adapters: Option<u64>, work: Work, time: &mut Timeline) {
    let adapters = adapters.unwrap_or(0);
    time.now(SCATTER, Kind::ReduceScatter, GRADIENT * adapters);
    time.now(NORMS, Kind::AllGather, GRADIENT * time.on.ranks as u64);
    time.compute(work.update / time.on.ranks as f64);
    time.now("all-gather of adapters", Kind::AllGather, WEIGHT * adapters);
}

/// Gathers all layers, each one layer ahead of its compute of `seconds`. `behind` is called after the compute
/// of each layer.
fn gathered_layers(time: &mut Timeline, units: Units, seconds: f64, mut behind: impl FnMut(&mut Timeline)) {
    let gather = |time: &mut Timeline| time.collective(GATHER, Kind::AllGather, WEIGHT * units.layer);
    let mut ready = VecDeque::new();
    for _ in 0..units.layers.min(2) {
        ready.push_back(gather(time));
    }
    for layer in 0..units.layers {
        if let Some(end) = ready.pop_front() {
            time.wait(end);
        }
        time.compute(seconds);
        behind(time);
        // The buffer of this layer's gathered weights is free again.
        if layer + 2 < units.layers {
            ready.push_back(gather(time));
        }
    }
}

fn step_of_sharded_weights(units: Units, work: Work, mut time: Timeline) -> SharedStep {
    let ends = WEIGHT * (units.embedding + units.head);
    if work.frozen_layer > 0.0 {
        time.now(GATHER, Kind::AllGather, ends);
        gathered_layers(&mut time, units, work.frozen_layer, |_| ());
    }
    time.now(GATHER, Kind::AllGather, ends);
    gathered_layers(&mut time, units, work.forward_layer, |_| ());
    time.compute(work.ends);
    time.collective(SCATTER, Kind::ReduceScatter, units.gradient(units.head));
    gathered_layers(&mut time, units, work.backward_layer, |time| {
        time.collective(SCATTER, Kind::ReduceScatter, units.gradient(units.layer));
    });
    time.compute(work.embedding_backward);
    time.now(SCATTER, Kind::ReduceScatter, units.gradient(units.embedding));
    update_of_shards(units.adapters, work, &mut time);
    time.end(Sharding::ShardWeights)
}

fn step(sharding: Sharding, units: Units, work: Work, on: Ranks, fabric: Fabric) -> SharedStep {
    let time = Timeline::new(on, fabric);
    match sharding {
        Sharding::Whole | Sharding::ShardOptimizer => step_of_whole_weights(sharding, units, work, time),
        Sharding::ShardWeights => step_of_sharded_weights(units, work, time),
    }
}

impl RanksPlan {
    /// Predicts the step of `plan` on each of several GPUs.
    pub fn new(plan: &StepPlan, config: &ModelConfig, on: Ranks, fabric: Fabric) -> Result<Self> {
        if on.hosts == 0 || on.ranks == 0 || !on.ranks.is_multiple_of(on.hosts) {
            return Err(Error::Usage(format!(
                "--ranks {} --hosts {}: every host needs the same number of ranks, at least one",
                on.ranks, on.hosts
            )));
        }
        if on.hosts > 1 && fabric.network.is_none() {
            return Err(Error::Usage(format!(
                "--hosts {}: --network is needed, the rate between hosts for each GPU, such as 50GB/s",
                on.hosts
            )));
        }
        let adapters = plan.workload.lora_rank.map(|_| plan.trained_parameters as u64);
        let units = Units { adapters, ..Units::of(config) };
        Ok(Self::of((units, Work::of(plan, config.layers)), on, fabric))
    }

    fn of((units, work): (Units, Work), on: Ranks, fabric: Fabric) -> Self {
        let alone = work.total(units.layers);
        let row = |ranks: usize, hosts: usize| {
            let on = Ranks { ranks, hosts };
            let step_seconds = match ranks {
                1 => [alone; 3],
                _ => Sharding::ALL.map(|sharding| step(sharding, units, work, on, fabric).step_seconds),
            };
            Scaling { on, step_seconds, efficiency: step_seconds.map(|seconds| alone / seconds) }
        };
        let hosts: &[usize] = if fabric.network.is_some() { &[2, 4, 8, 16] } else { &[] };
        let in_host = [1, 2, 4, HOST_CARDS].map(|ranks| row(ranks, 1));
        Self {
            on,
            fabric,
            steps: Sharding::ALL.map(|sharding| step(sharding, units, work, on, fabric)).to_vec(),
            scaling: in_host.into_iter().chain(hosts.iter().map(|&n| row(n * HOST_CARDS, n))).collect(),
        }
    }

    /// The plan as text for a terminal.
    pub fn text(&self) -> String {
        let (on, fabric) = (self.on, self.fabric);
        let network = fabric.network.map_or(String::new(), |rate| format!(", network {:.1} GB/s", rate / 1e9));
        let mut out = format!(
            "{} on {}, each GPU with the pairs above; link {:.1} GB/s{network} in one direction for each GPU\n\n",
            counted(on.ranks as u64, "rank"),
            counted(on.hosts as u64, "host"),
            fabric.link / 1e9
        );
        let _ = writeln!(
            out,
            "{:<22} {:<28} {:>6} {:>9} {:>9} {:>9} {:>10}",
            "choice", "collective", "calls", "MB", "sent MB", "ms", "waited ms"
        );
        for step in &self.steps {
            for found in &step.collectives {
                let _ = writeln!(
                    out,
                    "{:<22} {:<28} {:>6} {:>9.1} {:>9.1} {:>9.3} {:>10.3}",
                    step.sharding.name(),
                    found.collective,
                    found.calls,
                    found.bytes as f64 / 1e6,
                    found.sent_bytes as f64 / 1e6,
                    1e3 * found.seconds,
                    1e3 * found.exposed_seconds
                );
            }
            let hidden = step.collective_seconds - step.exposed_seconds;
            let _ = writeln!(
                out,
                "{:<22} step {:.1} ms: collectives {:.1} ms, {:.1} ms of them under forward and backward",
                "",
                1e3 * step.step_seconds,
                1e3 * step.collective_seconds,
                1e3 * hidden.max(0.0)
            );
        }
        let _ = writeln!(
            out,
            "\n{:>6} {:>6} {:>22} {:>22} {:>22}",
            "hosts",
            "GPUs",
            Sharding::Whole.name(),
            Sharding::ShardOptimizer.name(),
            Sharding::ShardWeights.name()
        );
        for row in &self.scaling {
            let cell = |i: usize| format!("{:.1} ms {:>3.0} %", 1e3 * row.step_seconds[i], 100.0 * row.efficiency[i]);
            let _ = writeln!(
                out,
                "{:>6} {:>6} {:>22} {:>22} {:>22}",
                row.on.hosts,
                row.on.ranks,
                cell(0),
                cell(1),
                cell(2)
            );
        }
        let _ = write!(
            out,
            "\nWeak scaling, predicted: pairs per second over those of one GPU times the number of GPUs; above 100 % \
             because a shard's update is shorter. A ring needs {:.1} us per call, {:.1} us per step within a host and \
             {:.0} us per step between hosts (NCCL's tuning model). Nothing in this table was measured.",
            1e6 * CALL_SECONDS,
            1e6 * LINK_STEP_SECONDS,
            1e6 * NETWORK_STEP_SECONDS
        );
        out
    }
}

#[cfg(test)]
mod tests;
