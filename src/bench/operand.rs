//! Operands of a benchmarked op: their sizes, their contents before the call, and the elements that
//! a check looks at.
//!
//! Values are a function of the element index. An operand of any size can be written in chunks, and
//! the check can recompute any element.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::work::Call;
use crate::backend::contract::{Precision, Runs};
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::rng::Rng;
use crate::{Error, Result};
use rayon::prelude::*;

/// Meaning of an operand's axis. A check selects indices by axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    Token,
    Input,
    Output,
    /// Fused query, key and value columns.
    Fused,
    /// Columns of all query heads.
    Query,
    Head,
    Vocab,
    /// Head rows: the rows whose logits the vocabulary head computes.
    Row,
    Sequence,
    Comparison,
    /// An axis that a check always covers completely.
    Whole,
}

/// Buffer type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Act,
    Acc,
    Idx,
}

/// Contents of an operand before the call.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Normal numbers with this standard deviation.
    Normal(f64),
    /// Like [`Fill::Normal`], with mean 1.
    AboutOne(f64),
    /// Squares of normal numbers with this standard deviation, like second moments.
    Square(f64),
    /// The bf16-rounded values of the operand with this name, which is filled with normal numbers
    /// of this deviation.
    CopyOf(&'static str, f64),
    /// A constant.
    Constant(f64),
    /// Result of another op; 0 until that op has run.
    Computed,
    /// Given numbers, one per element.
    Values(Arc<Vec<f64>>),
    /// Given indices, one per element.
    Indices(Arc<Vec<i32>>),
}

/// An operand of a call. Lists of operands have the order of the call's arguments.
#[derive(Clone, Debug)]
pub struct Operand {
    pub name: &'static str,
    pub storage: Storage,
    /// Row-major: (axis, length) of rows and of columns.
    pub rows: (Axis, usize),
    pub columns: (Axis, usize),
    pub fill: Fill,
    /// Whether the call writes the operand.
    pub written: bool,
}

/// Length of the sequence of normal numbers that operands repeat. It is prime, so that rows differ.
const NOISE_LEN: usize = 1_048_573;

static NORMAL: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut rng = Rng::keyed(1, &["bench", "operands"]);
    (0..NOISE_LEN).map(|_| rng.normal() as f32).collect()
});

/// Hash of an operand's name.
fn hash(name: &str) -> usize {
    name.bytes().fold(17usize, |hash, byte| (hash * 131 + byte as usize) % NOISE_LEN)
}

/// Normal number for the element with the index `place`. Each operand name walks the sequence with a separate
/// stride. Shared stretches would correlate two operands, and their dot products would not behave like dot
/// products of independent numbers.
fn noise(hash: usize, place: usize) -> f64 {
    let stride = 1 + hash % (NOISE_LEN - 1);
    f64::from(NORMAL[((place % NOISE_LEN) * stride + hash) % NOISE_LEN])
}

/// Value after rounding to the storage of this precision.
fn round(precision: Precision, storage: Storage, x: f64) -> f64 {
    match (precision, storage) {
        (Precision::F64, _) => x,
        (Precision::Bf16, Storage::Act) => half::bf16::from_f64(x).to_f64(),
        _ => f64::from(x as f32),
    }
}

impl Operand {
    /// A read-only operand of activations or weights.
    pub fn act(name: &'static str, rows: (Axis, usize), columns: (Axis, usize), fill: Fill) -> Self {
        Self { name, storage: Storage::Act, rows, columns, fill, written: false }
    }

    /// A read-only operand in the accumulation precision.
    pub fn acc(name: &'static str, rows: (Axis, usize), columns: (Axis, usize), fill: Fill) -> Self {
        Self { storage: Storage::Acc, ..Self::act(name, rows, columns, fill) }
    }

    /// A read-only operand of indices.
    pub fn idx(name: &'static str, values: &Arc<Vec<i32>>) -> Self {
        let rows = (Axis::Whole, values.len());
        Self { storage: Storage::Idx, ..Self::act(name, rows, ONE, Fill::Indices(values.clone())) }
    }

    /// Marks the operand as written by the call.
    pub fn written(self) -> Self {
        Self { written: true, ..self }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows.1 * self.columns.1
    }

    /// Whether the operand has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in this precision.
    pub fn bytes(&self, precision: Precision) -> u64 {
        let element = match self.storage {
            Storage::Act => precision.act_bytes(),
            Storage::Acc => precision.acc_bytes(),
            Storage::Idx => 4,
        };
        self.len() as u64 * element
    }

    /// Whether the operand is a pure output: the call reads nothing of it.
    pub fn starts_as_zeros(&self) -> bool {
        self.written && matches!(self.fill, Fill::Constant(0.0))
    }

    /// Value of an element, as stored in `precision`.
    pub fn value(&self, precision: Precision, place: usize) -> f64 {
        let of = |name, d: f64| d * noise(hash(name), place);
        let number = |d| of(self.name, d);
        let value = match &self.fill {
            Fill::Normal(deviation) => number(*deviation),
            Fill::AboutOne(deviation) => 1.0 + number(*deviation),
            Fill::Square(deviation) => number(*deviation).powi(2),
            Fill::CopyOf(name, deviation) => round(Precision::Bf16, Storage::Act, of(name, *deviation)),
            Fill::Constant(value) => *value,
            Fill::Computed => 0.0,
            Fill::Values(values) => values[place],
            Fill::Indices(values) => f64::from(values[place]),
        };
        round(precision, self.storage, value)
    }
}

/// An axis of length 1.
pub const ONE: (Axis, usize) = (Axis::Whole, 1);

/// Indices that a check looks at, by axis. An axis without an entry is checked completely.
#[derive(Clone, Debug, Default)]
pub struct Selection(BTreeMap<Axis, Vec<usize>>);

impl Selection {
    /// Adds the indices of one axis.
    pub fn with(mut self, axis: Axis, places: Vec<usize>) -> Self {
        self.0.insert(axis, places);
        self
    }

    /// Selected indices of an axis.
    fn places(&self, (axis, len): (Axis, usize)) -> Vec<usize> {
        self.0.get(&axis).cloned().unwrap_or_else(|| (0..len).collect())
    }

    /// Selected rows of an operand.
    pub fn rows(&self, operand: &Operand) -> Vec<usize> {
        self.places(operand.rows)
    }

    /// Selected columns of an operand.
    pub fn columns(&self, operand: &Operand) -> Vec<usize> {
        self.places(operand.columns)
    }
}

/// About `count` evenly spaced indices below `len`, including the first and the last.
pub fn spread(len: usize, count: usize) -> Vec<usize> {
    match (len, count.min(len)) {
        (_, 0) => Vec::new(),
        (_, 1) => vec![len - 1],
        (_, n) => (0..n).map(|i| i * (len - 1) / (n - 1)).collect(),
    }
}

/// Host copy of [`Runs`]: items grouped by key.
#[derive(Clone, Debug)]
pub struct HostRuns {
    pub order: Arc<Vec<i32>>,
    pub offsets: Arc<Vec<i32>>,
    pub keys: Arc<Vec<i32>>,
}

impl HostRuns {
    /// Groups items by key, given the key of every item.
    pub fn from_keys(keys_of_items: &[i32]) -> Self {
        let mut order: Vec<i32> = (0..keys_of_items.len() as i32).collect();
        order.sort_by_key(|&item| (keys_of_items[item as usize], item));
        let (mut offsets, mut keys) = (Vec::new(), Vec::new());
        for (at, &item) in order.iter().enumerate() {
            let key = keys_of_items[item as usize];
            if keys.last() != Some(&key) {
                offsets.push(at as i32);
                keys.push(key);
            }
        }
        offsets.push(order.len() as i32);
        Self { order: order.into(), offsets: offsets.into(), keys: keys.into() }
    }

    /// The three operands of the runs.
    pub fn operands(&self) -> [Operand; 3] {
        [
            Operand::idx("runs.order", &self.order),
            Operand::idx("runs.offsets", &self.offsets),
            Operand::idx("runs.keys", &self.keys),
        ]
    }

    /// Returns the three operands at the cursor as [`Runs`].
    pub fn take<'a, B: Backend>(o: &mut Cursor<'a, B>) -> Result<Runs<'a, B::Idx>> {
        Ok(Runs { order: o.idx()?, offsets: o.idx()?, keys: o.idx()? })
    }
}

/// A buffer on a backend.
pub enum OperandBuffer<B: Backend> {
    Act(B::Act),
    Acc(B::Acc),
    Idx(B::Idx),
}

/// The operands of a call on a backend.
pub struct OperandSet<B: Backend> {
    held: Vec<OperandBuffer<B>>,
    /// Whether no call has used the set yet, so that unwritten buffers hold zeros.
    fresh: bool,
}

/// Elements written or read at a time; bounds host memory.
const CHUNK: usize = 1 << 20;

impl<B: Backend> OperandSet<B> {
    /// Allocates the operands.
    pub fn new(on: &B, operands: &[Operand]) -> Result<Self> {
        let held = operands.iter().map(|operand| {
            let len = operand.len();
            Ok(match operand.storage {
                Storage::Act => OperandBuffer::Act(on.zeros_act(len)?),
                Storage::Acc => OperandBuffer::Acc(on.zeros_acc(len)?),
                Storage::Idx => OperandBuffer::Idx(on.zeros_idx(len)?),
            })
        });
        Ok(Self { held: held.collect::<Result<_>>()?, fresh: true })
    }

    /// Writes every operand's contents before `work`, in the precision of the backend.
    pub fn initialise(&mut self, on: &B, work: &impl Call, operands: &[Operand]) -> Result<()> {
        let fresh = self.fresh;
        self.fill_where(
            on,
            operands,
            |operand| !(fresh && operand.starts_as_zeros()),
            |at, place| operands[at].value(B::PRECISION, place),
        )?;
        work.compute_inputs(on, self.cursor())
    }

    /// Writes every operand; `value(operand, element)` gives the numbers.
    pub fn fill(&mut self, on: &B, operands: &[Operand], value: impl Fn(usize, usize) -> f64 + Sync) -> Result<()> {
        self.fill_where(on, operands, |_| true, value)
    }

    fn fill_where(
        &mut self,
        on: &B,
        operands: &[Operand],
        wanted: impl Fn(&Operand) -> bool,
        value: impl Fn(usize, usize) -> f64 + Sync,
    ) -> Result<()> {
        for (at, (operand, held)) in operands.iter().zip(&mut self.held).enumerate() {
            if !wanted(operand) {
                continue;
            }
            for start in (0..operand.len()).step_by(CHUNK) {
                let len = CHUNK.min(operand.len() - start);
                let values = (start..start + len).into_par_iter().map(|place| value(at, place));
                match held {
                    OperandBuffer::Act(buffer) => {
                        on.write_act(ViewMut::new(buffer, start, len), &values.collect::<Vec<_>>())?;
                    }
                    OperandBuffer::Acc(buffer) => {
                        on.write_acc(ViewMut::new(buffer, start, len), &values.collect::<Vec<_>>())?;
                    }
                    OperandBuffer::Idx(buffer) => {
                        let values: Vec<i32> = values.map(|x| x as i32).collect();
                        on.write_idx(ViewMut::new(buffer, start, len), &values)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Zeroes rows of a floating-point operand.
    pub fn clear(&mut self, on: &B, at: usize, operand: &Operand, rows: &[usize]) -> Result<()> {
        let width = operand.columns.1;
        let zeros = vec![0.0; width];
        rows.iter().try_for_each(|row| match &mut self.held[at] {
            OperandBuffer::Act(buffer) => on.write_act(ViewMut::new(buffer, row * width, width), &zeros),
            OperandBuffer::Acc(buffer) => on.write_acc(ViewMut::new(buffer, row * width, width), &zeros),
            OperandBuffer::Idx(_) => Ok(()),
        })
    }

    /// Reads the given rows and columns of a floating-point operand.
    pub fn read(&self, on: &B, at: usize, operand: &Operand, rows: &[usize], columns: &[usize]) -> Result<Vec<f64>> {
        let width = operand.columns.1;
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        // Adjacent rows are read in one copy.
        let mut next = 0;
        while next < rows.len() {
            let most = (CHUNK / width.max(1)).max(1);
            let mut count = 1;
            while count < most && rows.get(next + count) == Some(&(rows[next] + count)) {
                count += 1;
            }
            let mut piece = vec![0.0; count * width];
            match &self.held[at] {
                OperandBuffer::Act(buffer) => {
                    on.read_act(View::new(buffer, rows[next] * width, piece.len()), &mut piece)?
                }
                OperandBuffer::Acc(buffer) => {
                    on.read_acc(View::new(buffer, rows[next] * width, piece.len()), &mut piece)?
                }
                OperandBuffer::Idx(_) => piece.fill(f64::NAN),
            }
            for row in piece.chunks(width.max(1)) {
                values.extend(columns.iter().map(|&column| row[column]));
            }
            next += count;
        }
        Ok(values)
    }

    /// Cursor over the operands in order.
    pub fn cursor(&mut self) -> Cursor<'_, B> {
        self.fresh = false;
        Cursor { held: self.held.iter_mut() }
    }
}

/// Returns operands in order. It is an error if a call requests more operands than the set holds, or a
/// different storage from an operand's.
pub struct Cursor<'a, B: Backend> {
    held: std::slice::IterMut<'a, OperandBuffer<B>>,
}

/// Error for a call whose operands differ from its list.
fn mismatch(what: &str) -> Error {
    Error::Runtime(format!("a benchmarked call and its list of operands differ: {what}"))
}

impl<'a, B: Backend> Cursor<'a, B> {
    fn next(&mut self) -> Result<&'a mut OperandBuffer<B>> {
        self.held.next().ok_or_else(|| mismatch("the list is too short"))
    }

    fn act_buffer(&mut self) -> Result<&'a mut B::Act> {
        match self.next()? {
            OperandBuffer::Act(buffer) => Ok(buffer),
            _ => Err(mismatch("the operand does not hold activations")),
        }
    }

    fn acc_buffer(&mut self) -> Result<&'a mut B::Acc> {
        match self.next()? {
            OperandBuffer::Acc(buffer) => Ok(buffer),
            _ => Err(mismatch("the operand does not hold accumulators")),
        }
    }

    pub fn act_out(&mut self) -> Result<ViewMut<'a, B::Act>> {
        self.act_buffer().map(whole_mut)
    }

    pub fn acc_out(&mut self) -> Result<ViewMut<'a, B::Acc>> {
        self.acc_buffer().map(whole_mut)
    }

    pub fn act(&mut self) -> Result<View<'a, B::Act>> {
        self.act_buffer().map(|buffer| View::first(buffer, buffer.len()))
    }

    pub fn acc(&mut self) -> Result<View<'a, B::Acc>> {
        self.acc_buffer().map(|buffer| View::first(buffer, buffer.len()))
    }

    pub fn idx(&mut self) -> Result<View<'a, B::Idx>> {
        match self.next()? {
            OperandBuffer::Idx(buffer) => Ok(View::first(buffer, buffer.len())),
            _ => Err(mismatch("the operand does not hold indices")),
        }
    }
}

fn whole_mut<T: Buffer>(buffer: &mut T) -> ViewMut<'_, T> {
    let len = buffer.len();
    ViewMut::first(buffer, len)
}
