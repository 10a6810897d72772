//! Tests the sequence of NCCL calls and their results on emulated devices. The stand-in carries out the calls
//! between threads.

use std::ops::Range;

use half::bf16;

use super::*;
use crate::backend::collective::DeviceCollective as _;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::emulator::{Emulator, Schedule};
use crate::backend::{Backend, View, ViewMut};
use crate::ranks::buffers::{self, Begun};
use crate::ranks::collective::{Wire, shard_of};
use crate::ranks::stand_in::{Call, Entry, STREAM, StandIn};

/// An emulated device; `None` in a build without the emulator.
pub(crate) fn emulator() -> Option<Emulator> {
    match Emulator::with(Schedule::Rising, 2) {
        Ok(device) => Some(device),
        Err(why) => {
            assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
            println!("SKIPPED: {why}");
            None
        }
    }
}

/// Runs `work` on `size` connected ranks, each on a thread.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Arc<StandIn>) -> T + Sync) -> Vec<T> {
    let ranks = StandIn::ranks(size);
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(|| work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A call on the stream of the ranks.
fn call(name: &'static str, len: usize, number: Number, root: Option<usize>, offset: usize) -> Entry {
    Entry::Call(Call { name, len, number, root, stream: STREAM, offset: offset as i64 })
}

/// A collective of grouped calls, and the wait for its end.
fn collective(ticket: u64, calls: impl IntoIterator<Item = Entry>) -> Vec<Entry> {
    let before = [Entry::Fork { ops: 0 }, Entry::GroupStart];
    let behind = [Entry::GroupEnd, Entry::Mark(ticket), Entry::Settle { ticket, ops: 0 }];
    before.into_iter().chain(calls).chain(behind).collect()
}

/// Sums and gathers on one rank of 3; returns the log.
fn sums_and_gathers<A: crate::backend::kernels::device::Element>(
    device: Emulator,
    rank: &Arc<StandIn>,
    parts: &[Range<usize>],
) -> Vec<Entry> {
    let (r, len) = (rank.rank(), parts[2].end + 3);
    let backend = Kernels::<_, A>::new(device).with_ranks(Some(rank.clone()));
    let settled = |begun: Result<Begun>| assert_eq!(begun.unwrap().settle(&backend).unwrap(), None);
    // The collective on buffers needs only rank and number of ranks.
    let on = (&Sized3(r) as &dyn Collective, &backend);
    let value = |rank: usize, i: usize| (1 + 3 * i % 7) as f64 * [1.0, 0.5, -2.0][rank];
    let own: Vec<f64> = (0..len).map(|i| value(r, i)).collect();
    let sum = |i: usize, ranks: &[usize]| ranks.iter().map(|&rank| value(rank, i)).sum::<f64>();
    let buffer = || {
        let mut buffer = backend.zeros_acc(len).unwrap();
        backend.write_acc(ViewMut::first(&mut buffer, len), &own).unwrap();
        buffer
    };
    let read = |buffer: &_| {
        let mut values = vec![0.0; len];
        backend.read_acc(View::first(buffer, len), &mut values).unwrap();
        values
    };
    let whole = parts[0].start..parts[2].end;
    // Rank 1 does not contribute.
    let mut grads = buffer();
    settled(buffers::reduce_scatter(on, &mut grads, parts, r != 1));
    let scattered = read(&grads);
    assert!(parts[r].clone().all(|i| scattered[i] == sum(i, &[0, 2])), "{scattered:?}");
    settled(buffers::all_gather_acc(on, &mut grads, parts));
    let gathered = read(&grads);
    assert!(whole.clone().all(|i| gathered[i] == sum(i, &[0, 2])), "{gathered:?}");
    let mut reduced = buffer();
    settled(buffers::all_reduce(on, &mut reduced, whole.clone(), true));
    let reduced = read(&reduced);
    for (i, x) in reduced.iter().enumerate() {
        assert_eq!(*x, if whole.contains(&i) { sum(i, &[0, 1, 2]) } else { own[i] });
    }
    let mut weights = backend.zeros_act(len).unwrap();
    backend.write_act(ViewMut::first(&mut weights, len), &own).unwrap();
    settled(buffers::all_gather_act(on, &mut weights, parts));
    let mut values = vec![0.0; len];
    backend.read_act(View::first(&weights, len), &mut values).unwrap();
    for (i, x) in values.iter().enumerate() {
        let of = parts.iter().position(|part| part.contains(&i)).unwrap_or(r);
        assert_eq!(*x, value(of, i), "{i}");
    }
    rank.take_log()
}

/// One of 3 ranks, without messages.
struct Sized3(usize);

impl Collective for Sized3 {
    fn rank(&self) -> usize {
        self.0
    }
    fn size(&self) -> usize {
        3
    }
    fn exchange(&self, _: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        unreachable!("buffers of a device with ranks do not pass through the host")
    }
    fn all_gather(&self, _: &[u8]) -> Result<Vec<Vec<u8>>> {
        unreachable!("buffers of a device with ranks do not pass through the host")
    }
    fn broadcast(&self, _: Vec<u8>) -> Result<Vec<u8>> {
        unreachable!("buffers of a device with ranks do not pass through the host")
    }
    fn barrier(&self) -> Result<()> {
        unreachable!("buffers of a device with ranks do not pass through the host")
    }
}

#[test]
fn shards_are_one_scatter_and_one_gather_with_their_rest_in_a_group() {
    // 200 elements: shards of 64, the last with a remainder of 8.
    let parts: Vec<Range<usize>> = (0..3).map(|rank| shard_of(200, rank, 3)).collect();
    assert_eq!(parts[2], 128..200);
    let Some(_) = emulator() else { return };
    let logs = on_ranks(3, |rank| sums_and_gathers::<bf16>(emulator().unwrap(), &rank, &parts));
    for (rank, log) in logs.iter().enumerate() {
        let number = Number::F32;
        let expected = [
            collective(
                0,
                [call("reduce_scatter", 64, number, None, 4 * 64 * rank), call("reduce", 8, number, Some(2), 0)],
            ),
            collective(1, [gather(64, number, rank), call("broadcast", 8, number, Some(2), 0)]),
            vec![
                Entry::Fork { ops: 0 },
                call("all_reduce", 200, number, None, 0),
                Entry::Mark(2),
                Entry::Settle { ticket: 2, ops: 0 },
            ],
            collective(3, [gather(64, Number::Bf16, rank), call("broadcast", 8, Number::Bf16, Some(2), 0)]),
        ];
        assert_eq!(*log, expected.concat(), "rank {rank}");
    }
}

/// An all-gather in place: its input is the rank's slice of its output.
fn gather(len: usize, number: Number, rank: usize) -> Entry {
    let Entry::Call(call) = call("all_gather", len, number, None, 0) else { unreachable!() };
    Entry::Call(Call { offset: -((number.bytes() * len * rank) as i64), ..call })
}

#[test]
fn parts_of_other_lengths_are_one_call_a_rank_in_a_group() {
    let parts = [2..5, 5..5, 5..7];
    let Some(_) = emulator() else { return };
    let logs = on_ranks(3, |rank| sums_and_gathers::<f32>(emulator().unwrap(), &rank, &parts));
    let number = Number::F32;
    let each = |name: &'static str| [(3, 0), (2, 2)].map(|(len, root)| call(name, len, number, Some(root), 0));
    for log in &logs {
        assert_eq!(log[..7], collective(0, each("reduce"))[..]);
        assert_eq!(log[7..14], collective(1, each("broadcast"))[..]);
        assert_eq!(log[18..], collective(3, each("broadcast"))[..]);
    }
}

#[test]
fn collectives_are_not_recorded_with_ops_and_stay_inside_of_buffers() {
    let Some(device) = emulator() else { return };
    let rank = StandIn::ranks(1).remove(0);
    let backend = Kernels::<_, f32>::new(device).with_ranks(Some(rank.clone()));
    let mut buffer = backend.zeros_acc(8).unwrap();
    let collective = backend.device_collective().unwrap();
    let outside = collective.all_reduce(&mut buffer, 4..9, true).unwrap_err().to_string();
    assert!(outside.contains("elements 4..9 does not fit a buffer of 8 elements"), "{outside}");
    let recorded = backend.record(&mut || backend.all_reduce(&mut buffer, 0..8, true).map(|_| ()));
    let why = recorded.err().unwrap().to_string();
    assert!(why.contains("cannot be recorded"), "{why}");
    assert!(rank.take_log().is_empty());
}

#[test]
fn messages_of_any_length_pass_through_the_staging_buffer() {
    let Some(_) = emulator() else { return };
    on_ranks(3, |rank| {
        let ranks = Nccl::with_piece(emulator().unwrap(), rank.clone(), 8).unwrap();
        let r = ranks.rank();
        let text = |rank: usize| vec![rank as u8 + 1; 9 * rank];
        assert_eq!(ranks.all_gather(&text(r)).unwrap(), [0, 1, 2].map(text));
        assert_eq!(ranks.broadcast(text(2 - r)).unwrap(), text(2));
        let parts: Vec<Vec<u8>> = (0..3).map(|to| vec![(10 * r + to) as u8; to]).collect();
        let expected: Vec<Vec<u8>> = (0..3).map(|from| vec![(10 * from + r) as u8; r]).collect();
        assert_eq!(ranks.exchange(&parts).unwrap(), expected);
        let mut sum = [1e8, 1.0, -1e8].map(|x: f64| x * [1.0, 3.0, -1.0][r]);
        ranks.all_reduce(&mut sum, Wire::F64).unwrap();
        assert_eq!(sum, [1e8, 1.0, -1e8].map(|x: f64| x + 3.0 * x - x));
        ranks.barrier().unwrap();
        assert!(ranks.exchange(&parts[..2]).is_err());
        let log = rank.take_log();
        assert!(log.iter().all(|entry| matches!(entry, Entry::Call(call) if call.stream == STREAM)), "{log:?}");
    });
}
