//! The two queues of a GPU, compute and collectives, and the ring of a collective.

use std::collections::VecDeque;

use super::{CollectiveTime, Fabric, Ranks, Sharding, SharedStep};

/// Latency in seconds of a collective's call, of a ring step within a host, and of a ring step between hosts.
pub(super) const CALL_SECONDS: f64 = 8.4e-6;
pub(super) const LINK_STEP_SECONDS: f64 = 3.4e-6;
pub(super) const NETWORK_STEP_SECONDS: f64 = 14e-6;

/// Kinds of collectives. An all-reduce passes its bytes over every link twice, the others once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    AllReduce,
    Reduce,
    ReduceScatter,
    AllGather,
}

impl Kind {
    pub fn passes(self) -> usize {
        if self == Self::AllReduce { 2 } else { 1 }
    }
}

/// Returns the bytes that a GPU sends in a ring collective, and the seconds of the collective.
pub(super) fn ring(kind: Kind, bytes: u64, on: Ranks, fabric: Fabric) -> (u64, f64) {
    if on.ranks < 2 {
        return (0, 0.0);
    }
    let steps = kind.passes() * (on.ranks - 1);
    let between = if on.hosts > 1 { kind.passes() * (on.hosts - 1) } else { 0 };
    let sent = match kind {
        Kind::Reduce => bytes,
        _ => kind.passes() as u64 * (bytes as u128 * (on.ranks as u128 - 1) / on.ranks as u128) as u64,
    };
    let rate = fabric.network.filter(|_| on.hosts > 1).map_or(fabric.link, |network| network.min(fabric.link));
    let latency = CALL_SECONDS + (steps - between) as f64 * LINK_STEP_SECONDS + between as f64 * NETWORK_STEP_SECONDS;
    (sent, latency + sent as f64 / rate)
}

/// The two queues of a GPU: compute, and collectives.
pub(super) struct Timeline {
    pub on: Ranks,
    fabric: Fabric,
    compute: f64,
    busy: f64,
    collectives_end: f64,
    found: Vec<CollectiveTime>,
    /// Collectives that compute has not waited for yet, as (index in `found`, start, end).
    queue: VecDeque<(usize, f64, f64)>,
}

impl Timeline {
    pub fn new(on: Ranks, fabric: Fabric) -> Self {
        Self { on, fabric, compute: 0.0, busy: 0.0, collectives_end: 0.0, found: Vec::new(), queue: VecDeque::new() }
    }

    pub fn compute(&mut self, seconds: f64) {
        self.compute += seconds;
        self.busy += seconds;
    }

    /// Enqueues a collective after the compute so far and returns its end time.
    pub fn collective(&mut self, name: &'static str, kind: Kind, bytes: u64) -> f64 {
        if bytes == 0 {
            return self.compute;
        }
        let (sent, seconds) = ring(kind, bytes, self.on, self.fabric);
        let start = self.collectives_end.max(self.compute);
        self.collectives_end = start + seconds;
        let known = self.found.iter().position(|found| found.collective == name);
        let place = known.unwrap_or(self.found.len());
        if known.is_none() {
            let nothing = CollectiveTime {
                collective: name,
                calls: 0,
                bytes: 0,
                sent_bytes: 0,
                seconds: 0.0,
                exposed_seconds: 0.0,
            };
            self.found.push(nothing);
        }
        let found = &mut self.found[place];
        found.calls += 1;
        found.bytes += bytes;
        found.sent_bytes += sent;
        found.seconds += seconds;
        self.queue.push_back((place, start, self.collectives_end));
        self.collectives_end
    }

    /// Makes compute wait for the end of a collective. The waiting time is charged to the collectives that
    /// run meanwhile, including those queued before the awaited one.
    pub fn wait(&mut self, end: f64) {
        while let Some(&(place, start, last)) = self.queue.front() {
            let waited = last.min(end) - start.max(self.compute);
            self.found[place].exposed_seconds += waited.max(0.0);
            if last > end {
                break;
            }
            self.queue.pop_front();
        }
        self.compute = self.compute.max(end);
    }

    /// Enqueues a collective after the compute so far and waits for its end.
    pub fn now(&mut self, name: &'static str, kind: Kind, bytes: u64) {
        let end = self.collective(name, kind, bytes);
        self.wait(end);
    }

    pub fn end(self, sharding: Sharding) -> SharedStep {
        SharedStep {
            sharding,
            collective_seconds: self.found.iter().map(|found| found.seconds).sum(),
            exposed_seconds: self.compute - self.busy,
            step_seconds: self.compute,
            collectives: self.found,
        }
    }
}
