//! Ranks within one process, for tests: every rank is a thread, and all of them exchange parts through one
//! table. Counts the calls and the bytes that leave each rank.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::collective::{Collective, Wire, slice_of};
use crate::Result;

/// Longest wait for another rank, far longer than any wait that succeeds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls and bytes of a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub calls: usize,
    pub bytes: usize,
}

/// State that the ranks share. A round ends when every rank has stored its parts and read those of the
/// others.
#[derive(Default)]
struct Table {
    parts: Vec<Option<Vec<Vec<u8>>>>,
    taken: usize,
}

struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

/// One rank of a rehearsal.
pub(crate) struct Rehearsal {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
    traffic: Mutex<Traffic>,
}

impl Rehearsal {
    /// Creates ranks that communicate with each other.
    pub fn ranks(size: usize) -> Vec<Self> {
        let table = Table { parts: vec![None; size], taken: 0 };
        let shared = Arc::new(Shared { table: Mutex::new(table), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, size, shared: shared.clone(), traffic: Mutex::default() }).collect()
    }

    /// Runs `work` on every rank, each on a thread; returns its results by rank.
    pub fn run<T: Send>(size: usize, work: impl Fn(&Self) -> T + Sync) -> Vec<T> {
        let ranks = Self::ranks(size);
        std::thread::scope(|scope| {
            let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(|| work(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Calls and bytes so far.
    pub fn traffic(&self) -> Traffic {
        *self.traffic.lock().unwrap()
    }

    /// Waits for another rank to change the table. Panics after [`PATIENCE`], because a failed rank never
    /// changes it.
    fn wait<'t>(&self, table: MutexGuard<'t, Table>) -> MutexGuard<'t, Table> {
        let (table, waited) = self.shared.changed.wait_timeout(table, PATIENCE).unwrap();
        assert!(!waited.timed_out(), "rank {} waits for a rank that does not come", self.rank);
        table
    }

    fn meet(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut traffic = self.traffic.lock().unwrap();
        traffic.calls += 1;
        traffic.bytes +=
            parts.iter().enumerate().filter(|(to, _)| *to != self.rank).map(|(_, p)| p.len()).sum::<usize>();
        let mut table = self.shared.table.lock().unwrap();
        // The parts of the last round may still be on the table.
        while table.parts[self.rank].is_some() {
            table = self.wait(table);
        }
        table.parts[self.rank] = Some(parts);
        self.shared.changed.notify_all();
        while table.parts.iter().any(Option::is_none) {
            table = self.wait(table);
        }
        let received = table.parts.iter().flatten().map(|parts| parts[self.rank].clone()).collect();
        table.taken += 1;
        if table.taken == self.size {
            *table = Table { parts: vec![None; self.size], taken: 0 };
            self.shared.changed.notify_all();
        } else {
            // Every rank waits until the last one has cleared the table.
            while table.taken != 0 {
                table = self.wait(table);
            }
        }
        received
    }
}

impl Collective for Rehearsal {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        Ok(self.meet(parts.to_vec()))
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.meet(vec![bytes.to_vec(); self.size]))
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let sent = if self.rank == 0 { bytes } else { Vec::new() };
        Ok(self.meet(vec![sent; self.size]).swap_remove(0))
    }

    fn barrier(&self) -> Result<()> {
        self.meet(vec![Vec::new(); self.size]);
        Ok(())
    }
}

#[test]
fn sums_are_in_the_order_of_the_ranks_on_every_rank() {
    // In f32 these sums show their order: 1 is lost next to 1e8 unless the two large numbers are added first.
    let of_rank = |rank: usize| [1e8, 1.0, -1e8, 0.5].map(|x: f64| x * [1.0, 3.0, -1.0][rank]);
    for wire in [Wire::F32, Wire::F64] {
        let sums = Rehearsal::run(3, |rank| {
            let mut values = of_rank(rank.rank());
            rank.all_reduce(&mut values, wire).unwrap();
            values.map(f64::to_bits)
        });
        let expected: [u64; 4] = std::array::from_fn(|i| {
            let sum = (0..3).fold(0.0, |sum, rank| sum + of_rank(rank)[i]);
            (if wire == Wire::F32 { f64::from(sum as f32) } else { sum }).to_bits()
        });
        assert_eq!(sums, [expected; 3]);
    }
}

#[test]
fn every_operation_delivers_and_is_counted() {
    let results = Rehearsal::run(3, |rank| {
        let own = rank.rank() as u8;
        rank.barrier().unwrap();
        let gathered = rank.all_gather(&vec![own; usize::from(own)]).unwrap();
        assert_eq!(gathered, [vec![], vec![1], vec![2, 2]]);
        assert_eq!(rank.broadcast(vec![own + 9]).unwrap(), [9]);
        let before = rank.traffic();
        assert_eq!(before.calls, 3);
        let sum = rank.reduce_scatter(&[1.0, 2.0, 3.0, 4.0], Wire::F32).unwrap();
        assert_eq!(sum.len(), slice_of(4, rank.rank(), 3).len());
        (rank.traffic().bytes - before.bytes, sum)
    });
    let (bytes, sums): (Vec<usize>, Vec<Vec<f64>>) = results.into_iter().unzip();
    assert_eq!(sums.concat(), [3.0, 6.0, 9.0, 12.0]);
    // A rank sends everything but its own slice.
    assert_eq!(bytes, [12, 12, 8]);
}

#[test]
fn ranks_with_buffers_of_different_lengths_are_refused() {
    let results = Rehearsal::run(2, |rank| rank.reduce_scatter(&vec![0.0; 4 + 4 * rank.rank()], Wire::F32).is_err());
    assert_eq!(results, [true; 2]);
}
