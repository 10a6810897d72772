//! Kernels without a launcher, described by a sheet: a TOML file next to the kernel file. A sheet has the
//! sizes, and for each KERNEL or KERNELS name a table with the grid, the operands and their expected
//! contents. docs/kernels.md describes the keys.
//!
//! - [`expression`]: the formulas of a sheet
//! - this file: keys, and the launch that they describe
//! - `launch`: grid and arguments of a kernel
//! - `contract`: operands and expected results of the project's ops
//! - [`run`]: contents, launch, verification, times
//!
//! Errors are: unknown keys, a parameter that is neither a size nor given by the table, a written operand
//! that nothing checks, and sizes that are not whole.

mod contract;
pub mod expression;
pub(in crate::bench) mod launch;
pub mod run;

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use self::expression::{Formula, PLACES, Scope};
use self::launch::Launch;
use crate::backend::contract::Precision;
use crate::backend::kernels::own::{AxisKind, Declaration, Kind, OwnKernels, ParameterElement as Element};
use crate::files::input;
use crate::{Error, Result};

/// Maximum number of elements of all operands together. Each element needs at least 8 bytes of memory.
pub(super) const MAX_ELEMENTS: f64 = (1u64 << 29) as f64;

/// Maximum number of elements if results are not compared and need no memory.
const MAX_UNVERIFIED: f64 = (1u64 << 31) as f64;

/// Contents of an operand before the call.
#[derive(Clone, Debug)]
pub(super) enum Fill {
    Normal,
    Uniform,
    Formula(Formula),
    /// All bits are 1, so that an element that the kernel does not write is detected.
    Unwritten,
    /// Contents that the project's op named by the table has for this operand.
    Given(Vec<f64>),
}

/// Expected contents of an operand after the call.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// Read only, or scratch memory.
    Nothing,
    Formula(Formula),
    Given(Vec<f64>),
}

/// An operand of a launch.
#[derive(Clone, Debug)]
pub(crate) struct SheetOperand {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    pub(super) fill: Fill,
    pub(super) expected: Expected,
    /// Absolute and relative tolerance.
    pub(super) tolerance: (f64, f64),
    /// Number of elements that the kernel moves: each once, or twice if the kernel reads and writes it.
    pub(super) moved: u64,
}

/// Launches and their verification.
pub(crate) struct SheetCall {
    /// Launches in order. The operands are compared after the last launch.
    pub(super) launches: Vec<Launch>,
    pub precision: Precision,
    /// Sizes as `n=1000`.
    pub shape: String,
    pub(super) flops: u64,
    pub(super) operands: Vec<SheetOperand>,
}

/// A sheet.
#[derive(Clone)]
pub(crate) struct Sheet {
    path: PathBuf,
    sizes: Vec<(String, f64)>,
    tables: Vec<(String, Table)>,
    /// Whether results are compared.
    verified: bool,
}

/// Keys of a kernel's table that do not name a parameter.
const KEYS: [&str; 5] = ["grid", "shared", "flops", "op", "next"];

impl Sheet {
    /// Reads the sheet of a kernel file. It has the name of the file with the extension `.toml`.
    pub fn beside(kernel_file: &Path) -> Result<Self> {
        let path = kernel_file.with_extension("toml");
        let bytes = input::read(&path, input::MAX_CONFIG).map_err(input::data_error(&path))?;
        let wrong = |line: usize, why: String| Error::data(&path, line, None, why);
        let text = String::from_utf8(bytes).map_err(|_| wrong(0, "is not UTF-8 text".into()))?;
        let table: Table = toml::from_str(&text).map_err(|e: toml::de::Error| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
            wrong(line, e.message().to_owned())
        })?;
        let (mut sizes, mut tables) = (Vec::new(), Vec::new());
        for (name, value) in table {
            match (name.as_str(), value) {
                ("sizes", Value::Table(values)) => {
                    for (name, value) in values {
                        let Value::Integer(size @ 1..) = value else {
                            return Err(wrong(
                                0,
                                format!("size {name} = {}: a whole number of at least 1 is needed", text_of(&value)),
                            ));
                        };
                        sizes.push((name, size as f64));
                    }
                }
                (_, Value::Table(table)) => tables.push((name, table)),
                (_, value) => {
                    let why =
                        format!("{name}: only [sizes] and a table for each kernel are known, not {}", text_of(&value));
                    return Err(wrong(0, why));
                }
            }
        }
        Ok(Self { path, sizes, tables, verified: true })
    }

    fn wrong(&self, why: String) -> Error {
        Error::data(&self.path, 0, None, why)
    }

    /// Returns an error if a table has a name that is not in `known`.
    pub fn check_names(&self, known: &[&str]) -> Result<()> {
        match self.tables.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => Err(self.wrong(format!(
                "[{name}] does not name a kernel without a launcher in this file; these are {}",
                known.join(", ")
            ))),
        }
    }

    /// The calls of a declaration, one for each of its entry points. Returns no call for a kernel that is the
    /// `next` of a different kernel.
    pub fn calls(&self, kernels: &OwnKernels, declaration: &Declaration) -> Result<Vec<SheetCall>> {
        let name = &declaration.name;
        let table = self.table(name).ok_or_else(|| {
            self.wrong(format!(
                "has no table [{name}], and no launcher has the kernel {name}; add the table, or use the name of a \
                 shipped kernel"
            ))
        })?;
        if self.tables.iter().any(|(_, table)| table.get("next").map(text_of).as_deref() == Some(name)) {
            return Ok(Vec::new());
        }
        (0..declaration.kernels.len()).map(|index| self.call(kernels, declaration, index, table)).collect()
    }

    fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|(known, _)| known == name).map(|(_, table)| table)
    }

    /// Returns the kernel that the key `next` of a table names, with its table; `None` without the key.
    fn next<'a>(
        &'a self,
        kernels: &'a OwnKernels,
        table: &Table,
    ) -> Result<Option<(&'a Declaration, &'a Table)>, String> {
        let Some(name) = table.get("next").map(text_of) else { return Ok(None) };
        let declaration = kernels.new_declarations().find(|declaration| declaration.name == name);
        match (declaration, self.table(&name)) {
            (Some(declaration), Some(table)) if declaration.axes.is_empty() && !table.contains_key("next") => {
                Ok(Some((declaration, table)))
            }
            _ => Err(format!("next = {name:?}: must name a KERNEL of the file that has a table without `next`")),
        }
    }

    /// The sheet without a comparison, for sizes at which the reference would take hours.
    pub fn unverified(self) -> Self {
        Self { verified: false, ..self }
    }

    /// The value of a size; 1 if the sheet does not have it.
    pub fn size(&self, name: &str) -> usize {
        self.sizes.iter().find(|(known, _)| known == name).map_or(1, |(_, size)| *size as usize)
    }

    /// Blocks of a kernel's launch.
    pub fn blocks(&self, kernels: &OwnKernels, declaration: &Declaration) -> Result<f64> {
        let kernel = kernels.kernel(declaration, 0)?;
        let table = self.table(&declaration.name).cloned().unwrap_or_default();
        let launch = Launch::new(declaration, kernel, &table, &self.sizes, &[]);
        let launch = launch.map_err(|why| self.wrong(format!("[{}]: {why}", declaration.name)))?;
        Ok(launch.grid.0.iter().map(|&n| f64::from(n)).product())
    }

    /// Replaces the value of a size.
    pub fn resize(&mut self, name: &str, size: usize) {
        for (known, value) in &mut self.sizes {
            if known == name {
                *value = size as f64;
            }
        }
    }

    fn call(&self, kernels: &OwnKernels, declaration: &Declaration, index: usize, table: &Table) -> Result<SheetCall> {
        let in_table = |why: String| self.wrong(format!("[{}]: {why}", declaration.name));
        let next = self.next(kernels, table).map_err(in_table)?;
        let mut parts = vec![(declaration, kernels.kernel(declaration, index)?, table)];
        if let Some((next, table)) = next {
            parts.push((next, kernels.kernel(next, 0)?, table));
        }
        let mut sizes = self.sizes.clone();
        let mut storage = None;
        for (axis, &value) in declaration.axes.iter().zip(&declaration.kernels[index].values) {
            match axis.kind {
                AxisKind::Storage => storage = Some([Element::F32, Element::Bf16][value]),
                AxisKind::Int | AxisKind::Enum(_) => {
                    let number = axis.values[value].argument.parse().unwrap_or(value as f64);
                    sizes.push((axis.name.clone(), number));
                }
            }
        }
        let shown = sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ");
        let element = |of: Element| if of == Element::Storage { storage.unwrap_or(of) } else { of };
        let mut pointers: Vec<(String, Element, bool)> = Vec::new();
        for parameter in parts.iter().flat_map(|(declaration, ..)| &declaration.parameters) {
            let (of, written) = match parameter.kind {
                Kind::Read(of) => (element(of), false),
                Kind::Write(of) => (element(of), true),
                _ => continue,
            };
            match pointers.iter_mut().find(|(name, ..)| *name == parameter.name) {
                Some(known) if known.1 != of => {
                    return Err(in_table(format!("{} has a different type in the next kernel", parameter.name)));
                }
                Some(known) => known.2 |= written,
                None => pointers.push((parameter.name.clone(), of, written)),
            }
        }
        launch::check_keys(&parts, &pointers).map_err(in_table)?;
        let precision = storage.or_else(|| pointers.iter().map(|(_, of, _)| *of).find(|of| *of == Element::Bf16));
        let precision = if precision == Some(Element::Bf16) { Precision::Bf16 } else { Precision::F32 };
        let op = match table.get("op") {
            None => Vec::new(),
            Some(Value::String(op)) => {
                contract::operands(op, &self.sizes, precision, self.verified).map_err(in_table)?
            }
            Some(value) => return Err(in_table(format!("op = {}: the name of an op is needed", text_of(value)))),
        };
        let mut with_threads = sizes.clone();
        with_threads.push(("threads".into(), f64::from(parts[0].1.threads)));
        let operands = self.operands(table, &pointers, &with_threads, op).map_err(in_table)?;
        let launches = parts
            .iter()
            .map(|&(declaration, kernel, table)| {
                let launch = Launch::new(declaration, kernel, table, &sizes, &operands);
                launch.map_err(|why| self.wrong(format!("[{}]: {why}", declaration.name)))
            })
            .collect::<Result<_>>()?;
        let flops = launch::count("flops", table, &with_threads).map_err(in_table)?;
        Ok(SheetCall {
            launches,
            precision,
            shape: if shown.is_empty() { "none".into() } else { shown },
            flops,
            operands,
        })
    }

    fn operands(
        &self,
        table: &Table,
        pointers: &[(String, Element, bool)],
        sizes: &[(String, f64)],
        mut of_op: Vec<contract::OpOperand>,
    ) -> Result<Vec<SheetOperand>, String> {
        let unused: Vec<&str> = of_op
            .iter()
            .map(|operand| operand.name)
            .filter(|name| pointers.iter().all(|(pointer, ..)| pointer != name))
            .collect();
        if !unused.is_empty() {
            return Err(format!(
                "the op has the operands {}, which are not parameters of the kernel",
                unused.join(", ")
            ));
        }
        // The shapes come first, because a formula may use every operand.
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        for (name, ..) in pointers {
            let given = match table.get(name) {
                Some(Value::Table(keys)) => {
                    let known = ["shape", "role", "fill", "expect", "tolerance"];
                    if let Some(key) = keys.keys().find(|key| !known.contains(&key.as_str())) {
                        return Err(format!("{name}.{key} is unknown; keys of an operand: {}", known.join(", ")));
                    }
                    keys.get("shape")
                }
                Some(value) => {
                    return Err(format!(
                        "{name} = {}: {name} is a pointer, so `{{ shape = \"...\" }}` is needed",
                        text_of(value)
                    ));
                }
                None => None,
            };
            let of_op = of_op.iter().find(|operand| operand.name == *name);
            let shape: Vec<usize> = match (given, of_op) {
                (Some(shape), _) => {
                    let axes = list(shape);
                    if axes.is_empty() || axes.len() > PLACES.len() {
                        return Err(format!("{name}.shape = {}: one to three axes are needed", text_of(shape)));
                    }
                    axes.iter()
                        .map(|axis| Ok(whole_number("shape", axis, sizes, MAX_ELEMENTS)? as usize))
                        .collect::<Result<_, String>>()?
                }
                (None, Some(operand)) => vec![operand.rows, operand.columns],
                (None, None) => {
                    return Err(format!("{name}.shape is missing: the lengths of its axes, as \"tokens, hidden\""));
                }
            };
            let elements = |shape: &[usize]| shape.iter().map(|&n| n as f64).product::<f64>();
            if let Some(of_op) = of_op.filter(|of_op| elements(&shape) != (of_op.rows * of_op.columns) as f64) {
                return Err(format!(
                    "{name}.shape = {shape:?}: {name} of the op has {} x {} elements; leave the shape out",
                    of_op.rows, of_op.columns
                ));
            }
            shapes.push((name.clone(), shape));
            let most = if self.verified { MAX_ELEMENTS } else { MAX_UNVERIFIED };
            if shapes.iter().map(|(_, shape)| elements(shape)).sum::<f64>() > most {
                return Err(format!(
                    "the operands up to {name} have more than 2^{} elements; lower the sizes",
                    most.log2()
                ));
            }
        }
        let mut operands = Vec::new();
        for (at, (name, element, written)) in pointers.iter().enumerate() {
            let empty = Table::new();
            let keys = table.get(name).and_then(Value::as_table).unwrap_or(&empty);
            let text = |key: &str| keys.get(key).map(text_of);
            let of_op = of_op.iter().position(|operand| operand.name == *name).map(|index| of_op.swap_remove(index));
            let role = match (text("role").as_deref(), *written) {
                (Some("input") | None, false) => "input",
                (Some(role @ ("output" | "in-out" | "scratch")), true) => {
                    ["output", "in-out", "scratch"].into_iter().find(|known| *known == role).unwrap_or("output")
                }
                (None, true) if keys.contains_key("fill") || of_op.as_ref().is_some_and(|o| o.written && !o.zeros) => {
                    "in-out"
                }
                (None, true) => "output",
                (Some(role), written) => {
                    let roles = if written { "output, in-out and scratch" } else { "input" };
                    return Err(format!("{name}.role = {role:?}: roles of this pointer are {roles}"));
                }
            };
            let scope = Scope { sizes, operands: &[], result: &shapes[at].1 };
            let (given, expected_of_op, tolerance_of_op) = match of_op {
                Some(operand) => (Some(operand.values), operand.expected, Some(operand.tolerance)),
                None => (None, None, None),
            };
            let fill = match (text("fill"), given) {
                (Some(_), _) if matches!(role, "output" | "scratch") => {
                    return Err(format!("{name}.fill: an {role} operand has no contents before the call"));
                }
                (Some(text), _) if text == "normal" => Fill::Normal,
                (Some(text), _) if text == "uniform" => Fill::Uniform,
                (Some(text), _) => {
                    Fill::Formula(Formula::parse(&text, &scope).map_err(|why| format!("{name}.fill: {why}"))?)
                }
                (None, _) if matches!(role, "output" | "scratch") => Fill::Unwritten,
                (None, Some(values)) => Fill::Given(values),
                (None, None) if *element == Element::I32 => {
                    return Err(format!("{name}.fill is missing: int operands need a formula, such as \"i0\""));
                }
                (None, None) => Fill::Normal,
            };
            let scope = Scope { sizes, operands: &shapes, result: &shapes[at].1 };
            let expected = match (text("expect"), expected_of_op, role) {
                (Some(_), _, "input" | "scratch") => {
                    return Err(format!("{name}.expect: an {role} operand is not compared"));
                }
                (Some(text), ..) => {
                    Expected::Formula(Formula::parse(&text, &scope).map_err(|why| format!("{name}.expect: {why}"))?)
                }
                (None, _, "input" | "scratch") => Expected::Nothing,
                _ if !self.verified => Expected::Nothing,
                (None, Some(values), _) => Expected::Given(values),
                (None, None, _) => {
                    return Err(format!(
                        "{name}.expect is missing: the kernel writes {name}, so give its elements as a formula, the op it \
                         computes (op = \"...\"), or role = \"scratch\""
                    ));
                }
            };
            let tolerance = match (keys.get("tolerance"), tolerance_of_op) {
                (Some(value), _) => {
                    let tolerance = number("tolerance", value, sizes)?;
                    if tolerance.is_nan() || tolerance < 0.0 {
                        return Err(format!("{name}.tolerance = {tolerance}: a number of at least 0 is needed"));
                    }
                    (tolerance, tolerance)
                }
                (None, Some(tolerance)) => tolerance,
                (None, None) => default_tolerance(*element),
            };
            let times = if role == "in-out" { 2 } else { u64::from(role != "scratch") };
            let (name, element, shape) = (name.clone(), *element, shapes[at].1.clone());
            let moved = times * shape.iter().product::<usize>() as u64;
            operands.push(SheetOperand { name, element, shape, fill, expected, tolerance, moved });
        }
        Ok(operands)
    }
}

/// Absolute and relative tolerance of an element that is rounded once, with room for a few
/// operations before.
pub(super) fn default_tolerance(element: Element) -> (f64, f64) {
    let tolerance = match element {
        Element::Bf16 | Element::Storage => 1.0 / 128.0,
        Element::F32 => 1e-5,
        Element::F64 => 1e-12,
        Element::I32 => 0.0,
    };
    (tolerance, tolerance)
}

/// A number or a formula as text; other values in TOML's debug form, which is not a valid formula.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// Splits a list, or a text at the commas outside of brackets, into formulas.
fn list(value: &Value) -> Vec<String> {
    if let Value::Array(values) = value {
        return values.iter().map(text_of).collect();
    }
    let (text, mut depth) = (text_of(value), 0);
    let parts = text.split(|c| {
        depth += i32::from(c == '(' || c == '[') - i32::from(c == ')' || c == ']');
        c == ',' && depth == 0
    });
    parts.map(|part| part.trim().to_owned()).collect()
}

fn number(name: &str, value: &Value, sizes: &[(String, f64)]) -> Result<f64, String> {
    let scope = Scope { sizes, operands: &[], result: &[] };
    let formula = Formula::parse(&text_of(value), &scope).map_err(|why| format!("{name}: {why}"))?;
    let on = expression::Numbers { operands: &[], shapes: &[], place: &[], result: &[] };
    Ok(formula.value(&on))
}

/// Value of a formula, which must be a whole number from 1 to `most`.
fn whole_number(name: &str, text: &str, sizes: &[(String, f64)], most: f64) -> Result<f64, String> {
    let value = number(name, &Value::String(text.to_owned()), sizes)?;
    if value.fract() == 0.0 && (1.0..=most).contains(&value) {
        return Ok(value);
    }
    if value > most {
        return Err(format!("{name}: `{text}` is {value}; at most {most} are possible"));
    }
    Err(format!("{name}: `{text}` is {value}; a whole number of at least 1 is needed (ceil(...) rounds up)"))
}
