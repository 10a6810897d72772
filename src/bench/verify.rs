//! Verification of a call's results against the reference, before the call is timed. If the reference would
//! take hours, smaller calls are checked instead. Their results are elements of the large call's results.
//! Examples are some rows and columns of a GEMM, one tree and head of attention, and some rows or tokens of
//! the vocabulary.

use super::operand::{Fill, Operand, OperandSet, Storage};
use super::work::{Call, Part, Work};
use crate::backend::Backend;
use crate::backend::contract::Precision;
use crate::backend::reference::Reference;
use crate::{Error, Result};

/// Expected elements of an operand that one part writes.
struct Expected {
    /// Index of the operand.
    at: usize,
    rows: Vec<usize>,
    columns: Vec<usize>,
    values: Vec<f64>,
}

/// Expected results of a call, for one precision of its operands.
pub struct Oracle {
    operands: Vec<Operand>,
    expected: Vec<Expected>,
    precision: Precision,
}

impl Oracle {
    /// Runs the parts on the reference, with operands rounded to the backend's precision. `set`
    /// must be initialised for the call.
    pub fn new<B: Backend>(on: &B, work: &Work, set: &OperandSet<B>) -> Result<Self> {
        let operands = work.operands();
        let mut expected = Vec::new();
        for part in work.parts() {
            expected.extend(expected_of_part(on, &operands, set, &part)?);
        }
        Ok(Self { operands, expected, precision: B::PRECISION })
    }

    /// Prepares a used operand set for one more call, so that the check cannot see the results of the
    /// previous call. If the call reads nothing that it writes, clearing the checked rows is enough.
    pub fn reset<B: Backend>(&self, on: &B, work: &Work, set: &mut OperandSet<B>) -> Result<()> {
        if self.operands.iter().any(|operand| operand.written && !operand.starts_as_zeros()) {
            return set.initialise(on, work, &self.operands);
        }
        self.expected.iter().try_for_each(|e| set.clear(on, e.at, &self.operands[e.at], &e.rows))
    }

    /// Compares the results in the operands with the expected values. Returns the largest error as
    /// a share of its tolerance.
    /// [`Error::Runtime`] for an error above its tolerance.
    pub fn check<B: Backend>(&self, on: &B, work: &Work, set: &OperandSet<B>) -> Result<f64> {
        let mut worst = 0.0f64;
        for expected in &self.expected {
            let operand = &self.operands[expected.at];
            let tolerance = work.tolerance(self.precision, operand.name);
            let got = set.read(on, expected.at, operand, &expected.rows, &expected.columns)?;
            for (place, (&got, &value)) in got.iter().zip(&expected.values).enumerate() {
                let error = if got == value { 0.0 } else { (got - value).abs() };
                let share = error / tolerance.allowed(value);
                // NaN exceeds every tolerance.
                if share.is_nan() || share > 1.0 {
                    let (row, column) = (place / expected.columns.len(), place % expected.columns.len());
                    return Err(Error::Runtime(format!(
                        "{} is wrong at ({}, {}): {got} instead of {value}, {share:.2} times the tolerance of its contract",
                        operand.name, expected.rows[row], expected.columns[column]
                    )));
                }
                worst = worst.max(share);
            }
        }
        Ok(worst)
    }
}

fn expected_of_part<B: Backend>(
    on: &B,
    whole: &[Operand],
    set_of_call: &OperandSet<B>,
    part: &Part<Work>,
) -> Result<Vec<Expected>> {
    let precision = B::PRECISION;
    let operands = part.call.operands();
    let places: Vec<(Vec<usize>, Vec<usize>)> =
        whole.iter().map(|operand| (part.selection.rows(operand), part.selection.columns(operand))).collect();
    // Operands that are results of a different op keep the values that the backend computed.
    let computed = whole.iter().enumerate().zip(&places).map(|((at, operand), (rows, columns))| match operand.fill {
        Fill::Computed => set_of_call.read(on, at, operand, rows, columns),
        _ => Ok(Vec::new()),
    });
    let computed = computed.collect::<Result<Vec<_>>>()?;
    let mut set = OperandSet::new(&Reference, &operands)?;
    set.fill(&Reference, &operands, |at, place| {
        let (operand, (rows, columns)) = (&operands[at], &places[at]);
        if operand.storage == Storage::Idx {
            return operand.value(precision, place);
        }
        if let Some(&value) = computed[at].get(place) {
            return value;
        }
        let (row, column) = (place / operand.columns.1, place % operand.columns.1);
        whole[at].value(precision, rows[row] * whole[at].columns.1 + columns[column])
    })?;
    part.call.call(&Reference, set.cursor())?;
    let mut expected = Vec::new();
    for (at, (operand, (rows, columns))) in operands.iter().zip(places).enumerate() {
        if !operand.written || !(part.compared.is_empty() || part.compared.contains(&operand.name)) {
            continue;
        }
        let all = |n: usize| (0..n).collect::<Vec<_>>();
        let values = set.read(&Reference, at, operand, &all(operand.rows.1), &all(operand.columns.1))?;
        expected.push(Expected { at, rows, columns, values });
    }
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::contract::LinearDims;
    use crate::bench::work::linear::{Linear, Pass};

    /// Results of the reference pass its own check, complete and in parts. Cleared results, and operands
    /// before the call, fail it.
    #[test]
    fn parts_are_elements_of_the_whole() {
        for work in crate::bench::shapes::small(Precision::F64) {
            let operands = work.operands();
            let mut set = OperandSet::new(&Reference, &operands).unwrap();
            set.initialise(&Reference, &work, &operands).unwrap();
            let oracle = Oracle::new(&Reference, &work, &set).unwrap();
            work.call(&Reference, set.cursor()).unwrap();
            let share = oracle.check(&Reference, &work, &set).unwrap();
            assert!(share < 1.0, "{}: {share}", work.op());
            oracle.reset(&Reference, &work, &mut set).unwrap();
            assert!(oracle.check(&Reference, &work, &set).is_err(), "{} after a reset", work.op());
            work.call(&Reference, set.cursor()).unwrap();
            assert_eq!(oracle.check(&Reference, &work, &set).unwrap(), share, "{}", work.op());
            // Before the call the results are missing.
            let mut fresh = OperandSet::new(&Reference, &operands).unwrap();
            fresh.initialise(&Reference, &work, &operands).unwrap();
            assert!(oracle.check(&Reference, &work, &fresh).is_err(), "{} before the call", work.op());
        }
    }

    /// Written operands of a call on a backend, verified against the reference.
    fn verified<B: Backend>(on: &B, work: &Work) -> Vec<Vec<f64>> {
        let operands = work.operands();
        let mut set = OperandSet::new(on, &operands).unwrap();
        set.initialise(on, work, &operands).unwrap();
        let oracle = Oracle::new(on, work, &set).unwrap();
        work.call(on, set.cursor()).unwrap();
        oracle.check(on, work, &set).unwrap_or_else(|e| panic!("{} on {}: {e}", work.op(), B::NAME));
        let all = |n: usize| (0..n).collect::<Vec<_>>();
        let written = operands.iter().enumerate().filter(|(_, operand)| operand.written);
        written.map(|(at, o)| set.read(on, at, o, &all(o.rows.1), &all(o.columns.1)).unwrap()).collect()
    }

    /// The test covers every op that has a call in `bench::work`; ops need no other code for it.
    #[test]
    fn every_call_of_the_table_agrees_with_the_reference_on_every_backend() {
        use crate::backend::cpu::Cpu;
        use crate::backend::kernels::Kernels;
        use crate::backend::kernels::emulator::{Emulator, Schedule};
        use crate::backend::kernels::hopper::Hopper;
        fn emulated<A: crate::backend::kernels::device::Element>(work: &Work, schedules: &[Schedule]) {
            let results = schedules.iter().map(|&schedule| {
                let device = Emulator::with(schedule, 2).unwrap();
                verified(&Kernels::<_, A>::new(device).with_hopper(Hopper::Off), work)
            });
            let results: Vec<_> = results.collect();
            assert!(results.iter().all(|of| *of == results[0]), "{}: bits depend on the order of threads", work.op());
        }
        let has_emulator = Emulator::new().is_ok();
        assert!(has_emulator || std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"));
        for work in crate::bench::shapes::small(Precision::F32) {
            verified(&Cpu::new(), &work);
            if has_emulator {
                emulated::<f32>(&work, &[Schedule::Falling]);
            }
        }
        for work in crate::bench::shapes::small(Precision::Bf16) {
            if has_emulator {
                emulated::<half::bf16>(&work, &[Schedule::Rising, Schedule::Random(7)]);
            }
        }
    }

    #[test]
    fn a_wrong_element_is_reported_with_its_place() {
        let work = Work::from(Linear { pass: Pass::Forward, dims: LinearDims { tokens: 3, inputs: 4, outputs: 5 } });
        let operands = work.operands();
        let mut set = OperandSet::new(&Reference, &operands).unwrap();
        set.initialise(&Reference, &work, &operands).unwrap();
        let oracle = Oracle::new(&Reference, &work, &set).unwrap();
        work.call(&Reference, set.cursor()).unwrap();
        let mut y = set.read(&Reference, 2, &operands[2], &[0, 1, 2], &[0, 1, 2, 3, 4]).unwrap();
        y[7] += 0.5;
        set.fill(
            &Reference,
            &operands,
            |at, place| {
                if at == 2 { y[place] } else { operands[at].value(Precision::F64, place) }
            },
        )
        .unwrap();
        let error = oracle.check(&Reference, &work, &set).unwrap_err().to_string();
        assert!(error.contains("y is wrong at (1, 2)"), "{error}");
    }
}
