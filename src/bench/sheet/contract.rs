//! Operands of the project's ops that a sheet (a TOML file for a kernel without a launcher) can name: contents,
//! expected results by the f64 reference, and tolerances.

use super::super::operand::{Operand, OperandSet};
use super::super::work::elementwise::{LayerNorm, PlainActivation};
use super::super::work::head::Head;
use super::super::work::linear::{BiasGrad, Linear, Pass};
use super::super::work::{Call, Work};
use crate::backend::contract::{Gelu, GeluDims, LayerNormDims, LinearDims, Precision};
use crate::backend::reference::Reference;

/// An operand of an op.
pub struct OpOperand {
    pub name: &'static str,
    pub rows: usize,
    pub columns: usize,
    pub written: bool,
    /// Whether the operand holds zeros before the call, because the op only writes it.
    pub zeros: bool,
    /// Contents before the call.
    pub values: Vec<f64>,
    /// Contents after the call, if the op writes the operand.
    pub expected: Option<Vec<f64>>,
    /// Absolute and relative tolerance.
    pub tolerance: (f64, f64),
}

/// Ops that a sheet can name.
const OPS: [&str; 9] = [
    "linear_fwd",
    "linear_bwd_input",
    "linear_bwd_weight",
    "bias_bwd",
    "layer_norm_fwd",
    "layer_norm_bwd",
    "gelu_fwd",
    "gelu_bwd",
    "head_logprob_fwd",
];
/// Sizes of these ops.
const SIZES: [&str; 7] = ["tokens", "inputs", "outputs", "hidden", "intermediate", "rows", "vocab"];
/// Epsilon of LayerNorm, added to the variance before the square root.
const EPS: f64 = 1e-6;

/// Operands of an op with these sizes. If `compared` is true, the reference computes the expected results.
pub fn operands(
    op: &str,
    sizes: &[(String, f64)],
    precision: Precision,
    compared: bool,
) -> Result<Vec<OpOperand>, String> {
    let work = work(op, sizes, if compared { super::MAX_ELEMENTS } else { super::MAX_UNVERIFIED })?;
    let operands = work.operands();
    let failed = |e: crate::Error| format!("op {op}: {e}");
    let value = |operand: &Operand, place: usize| operand.value(precision, place);
    let mut set = None;
    if compared {
        let set = set.insert(OperandSet::new(&Reference, &operands).map_err(failed)?);
        set.fill(&Reference, &operands, |at, place| value(&operands[at], place)).map_err(failed)?;
        work.call(&Reference, set.cursor()).map_err(failed)?;
    }
    let all = |n: usize| (0..n).collect::<Vec<_>>();
    let mut found = Vec::new();
    for (at, operand) in operands.iter().enumerate() {
        let expected = set.as_ref().filter(|_| operand.written).map(|set| {
            set.read(&Reference, at, operand, &all(operand.rows.1), &all(operand.columns.1)).map_err(failed)
        });
        let tolerance = work.tolerance(precision, operand.name);
        // A result that is not compared needs no host memory.
        let filled = if compared || !operand.starts_as_zeros() { operand.len() } else { 0 };
        found.push(OpOperand {
            name: operand.name,
            rows: operand.rows.1,
            columns: operand.columns.1,
            written: operand.written,
            zeros: operand.starts_as_zeros(),
            values: (0..filled).map(|place| value(operand, place)).collect(),
            expected: expected.transpose()?,
            tolerance: (tolerance.atol, tolerance.rtol),
        });
    }
    Ok(found)
}

fn work(op: &str, sizes: &[(String, f64)], most: f64) -> Result<Work, String> {
    let size = |name: &str| {
        let found = sizes.iter().find(|(size, _)| size == name);
        found.map(|(_, size)| *size as usize).ok_or(format!("op {op} needs the size {name} in [sizes]"))
    };
    // An operand has two axes at most, so the two largest sizes bound its elements.
    let mut used: Vec<f64> = sizes.iter().filter(|(name, _)| SIZES.contains(&name.as_str())).map(|(_, n)| *n).collect();
    used.sort_by(f64::total_cmp);
    if used.iter().rev().take(2).product::<f64>() > most {
        return Err(format!("op {op}: an operand has more than 2^{} elements; lower the sizes", most.log2()));
    }
    let tokens = size("tokens");
    let linear = |pass| -> Result<Work, String> {
        let dims = LinearDims { tokens: size("tokens")?, inputs: size("inputs")?, outputs: size("outputs")? };
        Ok(Linear { pass, dims }.into())
    };
    let backward = op.ends_with("_bwd");
    Ok(match op {
        "linear_fwd" => linear(Pass::Forward)?,
        "linear_bwd_input" => linear(Pass::Input)?,
        "linear_bwd_weight" => linear(Pass::Weight)?,
        "bias_bwd" => BiasGrad { dims: LinearDims { tokens: tokens?, inputs: 1, outputs: size("outputs")? } }.into(),
        "layer_norm_fwd" | "layer_norm_bwd" => {
            LayerNorm { backward, dims: LayerNormDims { tokens: tokens?, hidden: size("hidden")?, eps: EPS } }.into()
        }
        "gelu_fwd" | "gelu_bwd" => {
            let dims = GeluDims { tokens: tokens?, intermediate: size("intermediate")?, form: Gelu::Tanh };
            PlainActivation { backward, dims }.into()
        }
        "head_logprob_fwd" => Head::new(false, size("rows")?, size("hidden")?, size("vocab")?).into(),
        _ => return Err(format!("op = {op:?} is not an op that a sheet can name; these are {}", OPS.join(", "))),
    })
}
