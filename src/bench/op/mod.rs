//! User-defined ops, from any crate, without a change to this one. An [`Op`] is a contract, a reference in
//! f64 and the name of a KERNEL or KERNELS line; a [`KernelFile`] holds the kernels.
//!
//! ```text
//! contract    sizes, operands with roles and shapes, checks, FLOPs, tolerances     trait Op
//! reference   y = f(x) in f64                                                      Op::reference
//! gradient    backward against (f(x + h) - f(x - h)) / 2h                          check_gradient
//! kernel      the same operands in every storage of the line, against f            KernelFile::verify
//!             the same bits in three orders of threads                             KernelFile::verify_emulated
//! row         verified, then timed: a row of a record                              KernelFile::rows
//! plan        bytes, FLOPs, floor, waves, predicted time on a GPU by name          KernelFile::plan
//! ```
//!
//! Sizes and scalars are passed to the kernel parameters of the same name, and operands to the pointers of
//! the same name. An `int` axis of a KERNELS line selects the entry point whose value equals the size of that
//! name. Gradients are named `d` and the name of the variable. `examples/own-op` in the repository is a crate
//! with such an op, its gradient, its kernels and its tests.
//!
//! Errors are: kernel parameters that are not a size, scalar or operand, operands that the kernel lacks,
//! results of the reference that are missing or have a different length, tensor maps and enums.

mod file;
mod gradient;
mod plan;

pub use file::{KernelFile, Verified};
pub use gradient::{GradientCheck, check_gradient};
pub use plan::Plan;

use super::sheet::MAX_ELEMENTS;
use crate::backend::contract::{Precision, Tolerance};
pub use crate::backend::kernels::device::Grid;
pub use crate::backend::kernels::own::Resources;
use crate::rng::Rng;
use crate::{Error, Result};

/// Results of [`Op::reference`]: name and elements of every operand that the op writes.
pub type Results = Vec<(&'static str, Vec<f64>)>;

/// An op: contract, reference and the kernel's name.
pub trait Op: Sync {
    /// Name of the KERNEL or KERNELS line, and of the op in rows.
    fn name(&self) -> &str;

    /// Sizes by name, as rows show them.
    fn sizes(&self) -> Vec<(&'static str, usize)>;

    /// Parameters of the kernel that are neither sizes nor operands.
    fn scalars(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Buffers with their shapes and roles.
    fn operands(&self) -> Vec<Operand>;

    /// Returns an error for sizes that the op does not support; the text says what is needed.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Floating-point operations of a call, counting a multiplication and an addition as two.
    fn flops(&self) -> u64;

    /// Grid of the launch; `threads` is the block size in the KERNEL line.
    fn grid(&self, threads: usize) -> Grid;

    /// Dynamic shared memory of a block in bytes.
    fn shared_bytes(&self) -> usize {
        0
    }

    /// Tolerance of a written operand whose elements have this precision. By default an error of 1/128 for
    /// bf16, 1e-5 for f32 and 1e-12 for f64, relative to 1 + the magnitude of the expected value. Integers
    /// are exact.
    fn tolerance(&self, operand: &str, precision: Precision) -> Tolerance {
        let _ = operand;
        let one = match precision {
            Precision::Bf16 => 1.0 / 128.0,
            Precision::F32 => 1e-5,
            Precision::F64 => 1e-12,
        };
        Tolerance { atol: one, rtol: one }
    }

    /// Computes the textbook formula: every written operand, except scratch memory, from the contents of all
    /// operands before the call.
    fn reference(&self, given: &Values) -> Result<Results>;
}

/// Role of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read only.
    Input,
    /// Written only; it holds NaN before the call.
    Output,
    /// Read and written.
    InOut,
    /// Written, and not compared.
    Scratch,
}

/// Contents before the call.
#[derive(Clone, Debug)]
enum Contents {
    Normal(f64),
    Uniform(f64, f64),
    Given(Vec<f64>),
}

/// A buffer of an op: row-major, with one element type, which the KERNEL line names.
#[derive(Clone, Debug)]
pub struct Operand {
    name: &'static str,
    shape: Vec<usize>,
    role: Role,
    contents: Contents,
    /// Input of the forward op whose gradient this operand holds, if [`Operand::gradient_of`] sets it.
    gradient_of: Option<&'static str>,
    differentiable: bool,
    moved: Option<usize>,
}

impl Operand {
    fn new(name: &'static str, shape: Vec<usize>, role: Role) -> Self {
        let contents = Contents::Normal(1.0);
        Self { name, shape, role, contents, gradient_of: None, differentiable: true, moved: None }
    }

    /// A buffer that the op reads. By default, it holds standard normal numbers.
    pub fn input(name: &'static str, shape: impl Into<Vec<usize>>) -> Self {
        Self::new(name, shape.into(), Role::Input)
    }

    /// Indices that the op reads: an `int` pointer, without a gradient.
    pub fn indices(name: &'static str, shape: impl Into<Vec<usize>>, values: Vec<i32>) -> Self {
        let values = values.into_iter().map(f64::from).collect();
        Self::new(name, shape.into(), Role::Input).values(values).without_gradient()
    }

    /// A buffer that the op writes.
    pub fn output(name: &'static str, shape: impl Into<Vec<usize>>) -> Self {
        Self::new(name, shape.into(), Role::Output)
    }

    /// A buffer that the op reads and writes.
    pub fn in_out(name: &'static str, shape: impl Into<Vec<usize>>) -> Self {
        Self::new(name, shape.into(), Role::InOut)
    }

    /// Memory that the op writes. It is not compared.
    pub fn scratch(name: &'static str, shape: impl Into<Vec<usize>>) -> Self {
        Self::new(name, shape.into(), Role::Scratch)
    }

    /// Sets the contents to normal numbers with this standard deviation.
    pub fn normal(self, deviation: f64) -> Self {
        Self { contents: Contents::Normal(deviation), ..self }
    }

    /// Sets the contents to numbers drawn uniformly between `from` and `to`.
    pub fn uniform(self, from: f64, to: f64) -> Self {
        Self { contents: Contents::Uniform(from, to), ..self }
    }

    /// Sets the contents to these numbers, one for each element.
    pub fn values(self, values: Vec<f64>) -> Self {
        Self { contents: Contents::Given(values), ..self }
    }

    /// In a backward op, this operand holds the gradient of the forward's input `name` after the call. By
    /// default, `dx` holds the gradient of `x`.
    pub fn gradient_of(self, name: &'static str) -> Self {
        Self { gradient_of: Some(name), ..self }
    }

    /// Declares that the input has no gradient; [`check_gradient`] expects none.
    pub fn without_gradient(self) -> Self {
        Self { differentiable: false, ..self }
    }

    /// Sets the number of elements that a call moves, such as the gathered rows of a table. By default every
    /// element moves once, or twice if the operand is read and written.
    pub fn moved(self, elements: usize) -> Self {
        Self { moved: Some(elements), ..self }
    }

    /// Number of elements.
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_written(&self) -> bool {
        self.role != Role::Input
    }

    /// Whether the reference returns the operand's contents, which are then compared.
    fn is_compared(&self) -> bool {
        matches!(self.role, Role::Output | Role::InOut)
    }

    /// Contents before the call; NaN for operands that the op only writes.
    fn drawn(&self, op: &str) -> Vec<f64> {
        let mut rng = Rng::keyed(1, &["op", op, self.name]);
        match (&self.contents, self.role) {
            (_, Role::Output | Role::Scratch) => vec![f64::NAN; self.len()],
            (Contents::Normal(deviation), _) => (0..self.len()).map(|_| deviation * rng.normal()).collect(),
            (Contents::Uniform(from, to), _) => (0..self.len()).map(|_| from + (to - from) * rng.unit()).collect(),
            (Contents::Given(values), _) => values.clone(),
        }
    }
}

/// Contents of operands by name, row-major.
#[derive(Clone, Debug, Default)]
pub struct Values(Vec<(String, Vec<f64>)>);

impl Values {
    /// Returns the elements of an operand, or [`Error::Usage`] with the known names if no operand has this
    /// name.
    pub fn of(&self, name: &str) -> Result<&[f64]> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, values)| &values[..]).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            Error::Usage(format!("the op has no operand {name}; its operands are {}", names.join(", ")))
        })
    }

    /// Names and elements in the order of the operands.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.0.iter().map(|(name, values)| (name.as_str(), &values[..]))
    }

    /// Sets the elements of an operand.
    pub fn set(&mut self, name: &str, values: Vec<f64>) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = values,
            None => self.0.push((name.to_owned(), values)),
        }
    }
}

/// Computes the op's results with its reference, from the contents of its operands.
pub fn compute(op: &dyn Op) -> Result<Values> {
    let operands = checked_operands(op)?;
    let given = operands.iter().map(|o| (o.name.to_owned(), o.drawn(op.name()))).collect();
    reference(op, &operands, &Values(given))
}

fn wrong(op: &dyn Op, why: impl std::fmt::Display) -> Error {
    Error::Usage(format!("op {}: {why}", op.name()))
}

/// Returns the operands if the contract is consistent.
fn checked_operands(op: &dyn Op) -> Result<Vec<Operand>> {
    op.check().map_err(|why| wrong(op, why))?;
    let operands = op.operands();
    for (at, operand) in operands.iter().enumerate() {
        let name = operand.name;
        if operands[..at].iter().any(|other| other.name == name) {
            return Err(wrong(op, format!("two operands are called {name}")));
        }
        if operand.len() == 0 {
            return Err(wrong(op, format!("{name} has the shape {:?}: every axis needs an element", operand.shape)));
        }
        if let Contents::Given(values) = &operand.contents
            && values.len() != operand.len()
        {
            let (got, shape) = (values.len(), &operand.shape);
            return Err(wrong(op, format!("{name} has {got} values for the {} elements of {shape:?}", operand.len())));
        }
    }
    if operands.iter().map(|o| o.shape.iter().map(|&n| n as f64).product::<f64>()).sum::<f64>() > MAX_ELEMENTS {
        return Err(wrong(op, "the operands have more than 2^29 elements; lower the sizes"));
    }
    Ok(operands)
}

/// Results of the reference in the order of the operands, each of the length of its operand.
fn reference(op: &dyn Op, operands: &[Operand], given: &Values) -> Result<Values> {
    let mut results = op.reference(given)?;
    let mut found = Values::default();
    for operand in operands.iter().filter(|operand| operand.is_compared()) {
        let Some(at) = results.iter().position(|(name, _)| *name == operand.name) else {
            return Err(wrong(op, format!("the reference returns no {}", operand.name)));
        };
        let (name, values) = results.swap_remove(at);
        if values.len() != operand.len() {
            let text = format!("the reference returns {} elements of {name}; it has {}", values.len(), operand.len());
            return Err(wrong(op, text));
        }
        found.set(name, values);
    }
    match results.first() {
        None => Ok(found),
        Some((name, _)) => Err(wrong(op, format!("the reference returns {name}, which the op does not write"))),
    }
}
