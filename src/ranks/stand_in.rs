//! A stand-in for NCCL in tests. It records every call with its operands, stream and group, and carries
//! it out between the threads of a [`Rehearsal`] on memory that the host can read. Calls of a group are
//! carried out at its end, so a group that is never closed has no effect.

use std::sync::{Arc, Mutex};

use half::bf16;

use super::collective::Collective as _;
use super::rehearsal::Rehearsal;
use crate::backend::collective::Ticket;
use crate::backend::kernels::nccl::{Calls, Number, Operands};
use crate::{Error, Result};

/// Handle of the stream of the ranks.
pub(crate) const STREAM: u64 = 77;

/// Entry of a rank's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Fork { ops: u64 },
    Mark(u64),
    Settle { ticket: u64, ops: u64 },
    GroupStart,
    GroupEnd,
    Call(Call),
}

/// A recorded call of the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub name: &'static str,
    pub len: usize,
    pub number: Number,
    pub root: Option<usize>,
    pub stream: u64,
    /// Bytes from the start of the input to the start of the output.
    pub offset: i64,
}

#[derive(Default)]
struct State {
    log: Vec<Entry>,
    group: Option<Vec<(Call, Operands)>>,
    marks: u64,
}

/// One rank of a stand-in.
pub(crate) struct StandIn {
    rank: Rehearsal,
    state: Mutex<State>,
}

impl StandIn {
    /// Creates ranks that communicate with each other.
    pub fn ranks(size: usize) -> Vec<Arc<Self>> {
        Rehearsal::ranks(size).into_iter().map(|rank| Arc::new(Self { rank, state: Mutex::default() })).collect()
    }

    /// Returns the calls so far and clears the log.
    pub fn take_log(&self) -> Vec<Entry> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn note(&self, entry: Entry) {
        self.state.lock().unwrap().log.push(entry);
    }

    fn call(&self, name: &'static str, on: Operands, root: Option<usize>, stream: u64) -> Result<()> {
        let offset = on.to.wrapping_sub(on.from) as i64;
        let call = Call { name, len: on.len, number: on.number, root, stream, offset };
        self.note(Entry::Call(call.clone()));
        if let Some(group) = &mut self.state.lock().unwrap().group {
            group.push((call, on));
            return Ok(());
        }
        self.carry_out(&call, on)
    }

    /// Carries out a call together with the other ranks.
    fn carry_out(&self, call: &Call, on: Operands) -> Result<()> {
        let (rank, size, bytes) = (self.rank.rank(), self.rank.size(), on.len * on.number.bytes());
        let same = format!("{} {} {:?} {:?}", call.name, call.len, call.number, call.root);
        let all = self.rank.all_gather(same.as_bytes())?;
        if let Some(other) = all.iter().find(|other| other.as_slice() != same.as_bytes()) {
            let other = String::from_utf8_lossy(other);
            return Err(Error::Runtime(format!("ranks make different calls: {same}, and {other}")));
        }
        let times = if call.name == "reduce_scatter" { size } else { 1 };
        // SAFETY: by the contract of the calls, the caller passes addresses of host memory with room for the
        // elements.
        let input = unsafe { std::slice::from_raw_parts(on.from as *const u8, times * bytes) }.to_vec();
        let inputs = self.rank.all_gather(&input)?;
        let output = match call.name {
            "all_gather" => inputs.concat(),
            "broadcast" => inputs[call.root.unwrap()].clone(),
            "reduce" if call.root != Some(rank) => return Ok(()),
            name => {
                let start = if name == "reduce_scatter" { rank * bytes } else { 0 };
                let parts: Vec<Vec<f64>> =
                    inputs.iter().map(|input| numbers(&input[start..start + bytes], on.number)).collect();
                let sum = |i: usize| parts.iter().map(|part| part[i]).sum::<f64>();
                encoded((0..on.len).map(sum), on.number)
            }
        };
        // SAFETY: the caller passes an address with room for the output, as above. Every rank has read its input
        // before any rank writes, and the outputs of the ranks do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(output.as_ptr(), on.to as *mut u8, output.len()) };
        Ok(())
    }
}

fn numbers(bytes: &[u8], number: Number) -> Vec<f64> {
    match number {
        Number::Byte => bytes.iter().map(|&b| f64::from(b)).collect(),
        Number::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Number::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
    }
}

fn encoded(values: impl Iterator<Item = f64>, number: Number) -> Vec<u8> {
    match number {
        Number::Byte => values.map(|x| x as u8).collect(),
        Number::F32 => values.flat_map(|x| (x as f32).to_le_bytes()).collect(),
        Number::Bf16 => values.flat_map(|x| bf16::from_f64(x).to_le_bytes()).collect(),
    }
}

impl Calls for StandIn {
    fn rank(&self) -> usize {
        self.rank.rank()
    }

    fn size(&self) -> usize {
        self.rank.size()
    }

    fn stream(&self) -> u64 {
        STREAM
    }

    fn fork(&self, ops: u64) -> Result<()> {
        self.note(Entry::Fork { ops });
        Ok(())
    }

    fn mark(&self) -> Result<Ticket> {
        let mut state = self.state.lock().unwrap();
        let ticket = state.marks;
        state.marks += 1;
        state.log.push(Entry::Mark(ticket));
        Ok(Ticket(ticket))
    }

    fn settle(&self, ticket: Ticket, ops: u64) -> Result<()> {
        self.note(Entry::Settle { ticket: ticket.0, ops });
        Ok(())
    }

    fn group_start(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.log.push(Entry::GroupStart);
        match state.group.replace(Vec::new()) {
            None => Ok(()),
            Some(_) => Err(Error::Runtime("a group begins within another".into())),
        }
    }

    fn group_end(&self) -> Result<()> {
        self.note(Entry::GroupEnd);
        let Some(group) = self.state.lock().unwrap().group.take() else {
            return Err(Error::Runtime("a group ends that has not begun".into()));
        };
        group.iter().try_for_each(|(call, on)| self.carry_out(call, *on))
    }

    unsafe fn reduce_scatter(&self, on: Operands, stream: u64) -> Result<()> {
        self.call("reduce_scatter", on, None, stream)
    }

    unsafe fn reduce(&self, on: Operands, root: usize, stream: u64) -> Result<()> {
        self.call("reduce", on, Some(root), stream)
    }

    unsafe fn all_reduce(&self, on: Operands, stream: u64) -> Result<()> {
        self.call("all_reduce", on, None, stream)
    }

    unsafe fn all_gather(&self, on: Operands, stream: u64) -> Result<()> {
        self.call("all_gather", on, None, stream)
    }

    unsafe fn broadcast(&self, on: Operands, root: usize, stream: u64) -> Result<()> {
        self.call("broadcast", on, Some(root), stream)
    }

    fn failure(&self) -> Option<String> {
        None
    }

    fn abort(&self) {}
}
