//! A launch that a sheet (a TOML file for a kernel without a launcher) describes: its grid, its shared memory
//! and the values of its parameters.

use toml::{Table, Value};

use super::{KEYS, SheetOperand, list, number, text_of, whole_number};
use crate::backend::kernels::device::{Grid, Kernel};
use crate::backend::kernels::own::{Declaration, Kind, ParameterElement as Element};

/// The value of a kernel's parameter.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) enum Argument {
    Operand(usize),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

/// A launch of a kernel.
pub(in crate::bench) struct Launch {
    pub kernel: &'static Kernel,
    pub grid: Grid,
    pub shared_bytes: usize,
    pub arguments: Vec<Argument>,
}

/// Returns an error for keys that are neither parameters nor in [`KEYS`]. The table of the first kernel
/// describes the operands of all kernels.
pub(super) fn check_keys(
    parts: &[(&Declaration, &'static Kernel, &Table)],
    pointers: &[(String, Element, bool)],
) -> Result<(), String> {
    for (at, (declaration, _, table)) in parts.iter().enumerate() {
        let names: Vec<&str> = declaration.parameters.iter().map(|p| p.name.as_str()).collect();
        for key in table.keys().map(String::as_str) {
            let operand = pointers.iter().any(|(name, ..)| name == key);
            if at > 0 && (operand || ["op", "flops"].contains(&key)) {
                return Err(format!("{key} belongs into the table of the first kernel, not of [{}]", declaration.name));
            }
            if !KEYS.contains(&key) && !names.contains(&key) && !operand {
                return Err(format!(
                    "{key} is unknown; keys: {}, and parameters: {}",
                    KEYS.join(", "),
                    names.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// Returns the value of the key `name`, which must be a whole number of at least 0; 0 if the key is absent.
pub(super) fn count(name: &str, table: &Table, sizes: &[(String, f64)]) -> Result<u64, String> {
    let Some(value) = table.get(name) else { return Ok(0) };
    let found = number(name, value, sizes)?;
    match found.fract() == 0.0 && (0.0..=9e15).contains(&found) {
        true => Ok(found as u64),
        false => Err(format!("{name} = {} is {found}; a whole number of at least 0 is needed", text_of(value))),
    }
}

impl Launch {
    /// Creates the launch of a kernel that `table` describes, on the operands of the call.
    pub fn new(
        declaration: &Declaration,
        kernel: &'static Kernel,
        table: &Table,
        sizes: &[(String, f64)],
        operands: &[SheetOperand],
    ) -> Result<Self, String> {
        let mut sizes = sizes.to_vec();
        sizes.push(("threads".into(), f64::from(kernel.threads)));
        let mut arguments = Vec::new();
        for parameter in &declaration.parameters {
            let name = &parameter.name;
            let value = || -> Result<f64, String> {
                match (table.get(name), sizes.iter().find(|(size, _)| size == name)) {
                    (Some(value), _) => number(name, value, &sizes),
                    (None, Some((_, size))) => Ok(*size),
                    (None, None) => Err(format!("parameter {name} is neither a size nor given: add `{name} = ...`")),
                }
            };
            let whole = |x: f64, most: f64| {
                if x.fract() == 0.0 && x.abs() <= most {
                    Ok(x)
                } else {
                    Err(format!("{name} = {x} is not a whole number"))
                }
            };
            arguments.push(match parameter.kind {
                Kind::Read(_) | Kind::Write(_) => {
                    Argument::Operand(operands.iter().position(|o| o.name == *name).unwrap_or(0))
                }
                Kind::Int => Argument::Int(whole(value()?, f64::from(i32::MAX))? as i32),
                Kind::Long => Argument::Long(whole(value()?, 9e15)? as i64),
                Kind::Float => Argument::Float(value()? as f32),
                Kind::Double => Argument::Double(value()?),
                Kind::TensorMap | Kind::Enum(_) => {
                    return Err(format!("parameter {name}: a sheet cannot pass tensor maps and enums; use numbers"));
                }
            });
        }
        let grid =
            table.get("grid").ok_or("grid is missing: a formula for the number of blocks, or a list of up to three")?;
        Ok(Self {
            kernel,
            grid: blocks(grid, &sizes)?,
            shared_bytes: count("shared", table, &sizes)? as usize,
            arguments,
        })
    }
}

fn blocks(grid: &Value, sizes: &[(String, f64)]) -> Result<Grid, String> {
    let formulas = list(grid);
    if formulas.is_empty() || formulas.len() > 3 {
        return Err(format!("grid = {}: one to three formulas are needed", text_of(grid)));
    }
    let mut blocks = [1u32; 3];
    for (blocks, formula) in blocks.iter_mut().zip(&formulas) {
        *blocks = whole_number("grid", formula, sizes, f64::from(i32::MAX))? as u32;
    }
    Ok(Grid(blocks))
}
