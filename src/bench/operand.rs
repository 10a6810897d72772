//! Operands of a benchmarked op: how many elements, what they hold before the call, and which of them a check looks at.
//! Values are a function of the element's place, so that an operand of any size is written piece by piece and any element
//! of it can be had again for the check.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::work::Call;
use crate::Result;
use crate::backend::contract::{Precision, Runs};
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::rng::Rng;
use rayon::prelude::*;

/// What an axis of an operand counts. A check selection places on axes.
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
    /// Head rows.
    Row,
    Sequence,
    Comparison,
    /// Not picked from.
    Whole,
}

/// Where elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Act,
    Acc,
    Idx,
}

/// What an operand holds before the call.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Normal numbers of this deviation.
    Normal(f64),
    /// As [`Fill::Normal`], about 1.
    AboutOne(f64),
    /// Squares of normal numbers of this deviation: second moments.
    Square(f64),
    /// The bf16 values that the operand of this name, filled with normal numbers of this deviation, holds.
    CopyOf(&'static str, f64),
    /// One number.
    Constant(f64),
    /// What another op leaves there; 0 until then.
    Computed,
    /// Given numbers, one an element.
    Values(Arc<Vec<f64>>),
    /// Given indices, one an element.
    Indices(Arc<Vec<i32>>),
}

/// An operand of a call, in the order in which the call takes them.
#[derive(Clone, Debug)]
pub struct Operand {
    pub name: &'static str,
    pub storage: Storage,
    /// Row-major: (axis, length) of rows and of columns.
    pub rows: (Axis, usize),
    pub columns: (Axis, usize),
    pub fill: Fill,
    /// Whether the call writes it.
    pub written: bool,
}

/// Length of the sequence of normal numbers that operands repeat: prime, so that rows differ.
const NOISE_LEN: usize = 1_048_573;

static NORMAL: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut rng = Rng::keyed(1, &["bench", "operands"]);
    (0..NOISE_LEN).map(|_| rng.normal() as f32).collect()
});

/// Of an operand's name.
fn hash(name: &str) -> usize {
    name.bytes().fold(17usize, |hash, byte| (hash * 131 + byte as usize) % NOISE_LEN)
}

/// A normal number for a place. Operands of different names walk the sequence in different strides, so that no stretch of
/// one is a stretch of another: their products would not be those of independent numbers.
fn noise(hash: usize, place: usize) -> f64 {
    let stride = 1 + hash % (NOISE_LEN - 1);
    f64::from(NORMAL[((place % NOISE_LEN) * stride + hash) % NOISE_LEN])
}

/// As stored in this precision.
fn round(precision: Precision, storage: Storage, x: f64) -> f64 {
    match (precision, storage) {
        (Precision::F64, _) => x,
        (Precision::Bf16, Storage::Act) => half::bf16::from_f64(x).to_f64(),
        _ => f64::from(x as f32),
    }
}

impl Operand {
    /// An operand that is read, of activations or weights.
    pub fn act(name: &'static str, rows: (Axis, usize), columns: (Axis, usize), fill: Fill) -> Self {
        Self { name, storage: Storage::Act, rows, columns, fill, written: false }
    }

    /// An operand that is read, of the precision of sums.
    pub fn acc(name: &'static str, rows: (Axis, usize), columns: (Axis, usize), fill: Fill) -> Self {
        Self { storage: Storage::Acc, ..Self::act(name, rows, columns, fill) }
    }

    /// Indices.
    pub fn idx(name: &'static str, values: &Arc<Vec<i32>>) -> Self {
        let rows = (Axis::Whole, values.len());
        Self { storage: Storage::Idx, ..Self::act(name, rows, ONE, Fill::Indices(values.clone())) }
    }

    /// The same, written by the call.
    pub fn written(self) -> Self {
        Self { written: true, ..self }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.rows.1 * self.columns.1
    }

    /// Whether there are none.
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

    /// Whether it is a result, of which nothing is read before the call.
    pub fn starts_as_zeros(&self) -> bool {
        self.written && matches!(self.fill, Fill::Constant(0.0))
    }

    /// The value at a place, as stored in `precision`.
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

/// An axis of one place.
pub const ONE: (Axis, usize) = (Axis::Whole, 1);

/// Places of axes that a check looks at; an axis that is not named is taken whole.
#[derive(Clone, Debug, Default)]
pub struct Selection(BTreeMap<Axis, Vec<usize>>);

impl Selection {
    /// The same with places of one more axis.
    pub fn with(mut self, axis: Axis, places: Vec<usize>) -> Self {
        self.0.insert(axis, places);
        self
    }

    /// Places of an axis.
    fn places(&self, (axis, len): (Axis, usize)) -> Vec<usize> {
        self.0.get(&axis).cloned().unwrap_or_else(|| (0..len).collect())
    }

    /// Rows of an operand that are looked at.
    pub fn rows(&self, operand: &Operand) -> Vec<usize> {
        self.places(operand.rows)
    }

    /// Columns of an operand that are looked at.
    pub fn columns(&self, operand: &Operand) -> Vec<usize> {
        self.places(operand.columns)
    }
}

/// About `count` places below `len`, the first and the last among them.
pub fn spread(len: usize, count: usize) -> Vec<usize> {
    match (len, count.min(len)) {
        (_, 0) => Vec::new(),
        (_, 1) => vec![len - 1],
        (_, n) => (0..n).map(|i| i * (len - 1) / (n - 1)).collect(),
    }
}

/// Items grouped by key, as [`Runs`] has them.
#[derive(Clone, Debug)]
pub struct HostRuns {
    pub order: Arc<Vec<i32>>,
    pub offsets: Arc<Vec<i32>>,
    pub keys: Arc<Vec<i32>>,
}

impl HostRuns {
    /// Of the key of every item.
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

    /// The three operands.
    pub fn operands(&self) -> [Operand; 3] {
        [
            Operand::idx("runs.order", &self.order),
            Operand::idx("runs.offsets", &self.offsets),
            Operand::idx("runs.keys", &self.keys),
        ]
    }

    /// The three operands, taken.
    pub fn take<'a, B: Backend>(o: &mut Cursor<'a, B>) -> Runs<'a, B::Idx> {
        Runs { order: o.idx(), offsets: o.idx(), keys: o.idx() }
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
    /// Nothing has been called with it: buffers that nothing was put into hold zeros.
    fresh: bool,
}

/// Elements written or read at once: bounds the memory of the host.
const CHUNK: usize = 1 << 20;

impl<B: Backend> OperandSet<B> {
    /// SizeLimits for the operands.
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

    /// Puts into every operand what it holds before `work`, in the precision of the backend.
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

    /// Puts numbers into every operand; `value` gives an element of the operand at an index.
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
                    // A single number is put by the stream; two keep this an ordinary copy.
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

    /// Puts zeros into rows of an operand of numbers.
    pub fn clear(&mut self, on: &B, at: usize, operand: &Operand, rows: &[usize]) -> Result<()> {
        let width = operand.columns.1;
        let zeros = vec![0.0; width];
        rows.iter().try_for_each(|row| match &mut self.held[at] {
            OperandBuffer::Act(buffer) => on.write_act(ViewMut::new(buffer, row * width, width), &zeros),
            OperandBuffer::Acc(buffer) => on.write_acc(ViewMut::new(buffer, row * width, width), &zeros),
            OperandBuffer::Idx(_) => Ok(()),
        })
    }

    /// Elements of an operand of numbers: the given columns of the given rows.
    pub fn read(&self, on: &B, at: usize, operand: &Operand, rows: &[usize], columns: &[usize]) -> Result<Vec<f64>> {
        let width = operand.columns.1;
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        // Neighbouring rows come in one copy.
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

    /// The operands one after the other.
    pub fn cursor(&mut self) -> Cursor<'_, B> {
        self.fresh = false;
        Cursor { held: self.held.iter_mut() }
    }
}

/// Hands out operands in their order. Asking for another storage than the operand's is a defect of the program.
pub struct Cursor<'a, B: Backend> {
    held: std::slice::IterMut<'a, OperandBuffer<B>>,
}

impl<'a, B: Backend> Cursor<'a, B> {
    fn next(&mut self) -> &'a mut OperandBuffer<B> {
        self.held.next().expect("as many operands as the call takes")
    }

    pub fn act_out(&mut self) -> ViewMut<'a, B::Act> {
        match self.next() {
            OperandBuffer::Act(buffer) => whole_mut(buffer),
            _ => panic!("an operand of activations"),
        }
    }

    pub fn acc_out(&mut self) -> ViewMut<'a, B::Acc> {
        match self.next() {
            OperandBuffer::Acc(buffer) => whole_mut(buffer),
            _ => panic!("an operand of sums"),
        }
    }

    pub fn act(&mut self) -> View<'a, B::Act> {
        match self.next() {
            OperandBuffer::Act(buffer) => View::first(buffer, buffer.len()),
            _ => panic!("an operand of activations"),
        }
    }

    pub fn acc(&mut self) -> View<'a, B::Acc> {
        match self.next() {
            OperandBuffer::Acc(buffer) => View::first(buffer, buffer.len()),
            _ => panic!("an operand of sums"),
        }
    }

    pub fn idx(&mut self) -> View<'a, B::Idx> {
        match self.next() {
            OperandBuffer::Idx(buffer) => View::first(buffer, buffer.len()),
            _ => panic!("an operand of indices"),
        }
    }
}

fn whole_mut<T: Buffer>(buffer: &mut T) -> ViewMut<'_, T> {
    let len = buffer.len();
    ViewMut::first(buffer, len)
}
