//! File format of a sweep. `[flags]` holds the training flags of every run, `[vary]` lists of
//! values, `[[variants]]` named sets of flags:
//!
//! ```toml
//! method = "reward"
//! prepare = [["data", "language", "--seed", "{seed}", "--output", "{out}/train-{seed}.jsonl"]]
//! [flags]
//! model = "model"
//! train-file = "{out}/train-{seed}.jsonl"
//! max-steps = 12
//! [vary]
//! seed = [1, 2, 3]
//! [[variants]]
//! name = "base"
//! flags = { objective = "base" }
//! [[variants]]
//! name = "MAPL"
//! flags = { objective = "mapl" }
//! [measure]
//! input = "test.jsonl"
//! ```
//!
//! `prepare` holds commands of this program that run once before the runs that need them, `[measure]` the
//! flags of `mapl eval` after every run, and `[ifeval]` those of `mapl ifeval`. In all arguments, `{out}`
//! stands for the output folder, `{flag}` for the value of a varied flag, and `{name}` for an input. An entry
//! such as `inputs = ["model"]` requires `--set model=FOLDER`.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use crate::files::input;
use crate::{Error, Result};

/// Contents of a sweep's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SweepFile {
    method: String,
    /// Names of the inputs, whose values `--set` gives on the command line.
    #[serde(default)]
    inputs: Vec<String>,
    #[serde(default)]
    prepare: Vec<Vec<String>>,
    flags: Table,
    #[serde(default)]
    vary: Table,
    #[serde(default)]
    variants: Vec<Variant>,
    measure: Option<Table>,
    ifeval: Option<Table>,
}

/// A named set of flags. Its flags replace those of `[flags]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    #[serde(default)]
    flags: Table,
}

/// The runs of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// `sft`, `reward`, `dpo` or `kto`.
    pub method: String,
    /// Varied flags: [`VARIANT`] if the file has variants, then the flags in alphabetical order.
    pub axes: Vec<String>,
    pub points: Vec<Point>,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Name by position in the grid, such as `p001`.
    pub name: String,
    /// Values of the varied flags.
    pub values: Vec<String>,
    /// Command line arguments after the method.
    pub words: Vec<String>,
    /// Commands to run once before the points that share them, without the program's name.
    pub prepare: Vec<Vec<String>>,
    /// Arguments of `eval` after the run, except the model.
    pub measure: Option<Vec<String>>,
    /// Arguments of `ifeval` after the run, except the model.
    pub ifeval: Option<Vec<String>>,
}

/// Name of the axis over variants.
pub const VARIANT: &str = "variant";
/// Name of the flag whose values a summary averages over.
pub const SEED: &str = "seed";

/// Flags that the sweep sets itself.
const RESERVED_FLAGS: [&str; 6] =
    ["output-dir", "overwrite-output-dir", "resume-from-checkpoint", "quiet", "study-dir", "profile"];
/// Flags of `[measure]` that the sweep sets itself.
const RESERVED_MEASURE: [&str; 5] = ["model", "output", "json", "compare", "benchmark"];
/// Flags of `[ifeval]` that the sweep sets itself.
const RESERVED_IFEVAL: [&str; 6] = ["model", "output", "json", "compare", "responses", "save-responses"];

/// Maximum number of runs of a sweep.
const MAX_POINTS: usize = 1000;

impl Grid {
    /// Reads a sweep's file. `out` is the output folder, and `given` holds the names and values of the
    /// inputs. [`Error::Data`] names the line of an error.
    pub fn read(path: &Path, out: &Path, given: &[(String, String)]) -> Result<Self> {
        let bytes = input::read_once(path, input::MAX_CONFIG).map_err(input::data_error(path))?;
        let wrong = |line: usize, why: String| Error::Data { file: path.to_owned(), line, id: None, why };
        let text = String::from_utf8(bytes).map_err(|_| wrong(0, "is not UTF-8 text".into()))?;
        let file: SweepFile = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let needs = "a sweep needs method, [flags], and [vary] or [[variants]]";
            wrong(line, format!("{}; {needs}", e.message().trim()))
        })?;
        file.check().map_err(|why| wrong(0, why))?;
        check_given(&file.inputs, given)?;
        Self::of(&file, &out.to_string_lossy(), given).map_err(|why| wrong(0, why))
    }

    fn of(file: &SweepFile, out: &str, given: &[(String, String)]) -> Result<Self, String> {
        let mut axes: Vec<(&str, &[Value])> = Vec::new();
        for (name, values) in &file.vary {
            let Some(values) = values.as_array().filter(|values| !values.is_empty()) else {
                return Err(format!("{name}: a list with at least one value is needed in [vary]"));
            };
            axes.push((name, values));
        }
        let variants = file.variants.len().max(1);
        let count = axes.iter().try_fold(variants, |count, (_, values)| count.checked_mul(values.len()));
        let Some(count) = count.filter(|&count| count <= MAX_POINTS) else {
            return Err(format!("the lists make more than {MAX_POINTS} runs; shorten them"));
        };
        let points = (0..count).map(|index| file.point(&axes, index, out, given)).collect::<Result<_, _>>()?;
        let variant = (!file.variants.is_empty()).then(|| VARIANT.to_owned());
        let axes = variant.into_iter().chain(axes.iter().map(|axis| axis.0.to_owned())).collect();
        Ok(Self { method: file.method.clone(), axes, points })
    }

    /// Returns the indices of the points in run order: all settings with the first seed, then all with the
    /// next. Settings can thus be compared even if the sweep is stopped early.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.points.len()).collect();
        if let Some(axis) = self.axes.iter().position(|axis| axis == SEED) {
            let first = |index: &usize| {
                let seed = &self.points[*index].values[axis];
                self.points.iter().position(|point| point.values[axis] == *seed)
            };
            order.sort_by_key(first);
        }
        order
    }
}

impl SweepFile {
    /// Returns an error for contents that no sweep can run, such as an unknown method or a reserved flag.
    fn check(&self) -> Result<(), String> {
        if !["sft", "reward", "dpo", "kto"].contains(&self.method.as_str()) {
            return Err(format!("method {:?} is not one of sft, reward, dpo, kto", self.method));
        }
        if self.vary.is_empty() && self.variants.is_empty() {
            return Err("[vary] is empty; list at least one flag with its values, or add [[variants]]".into());
        }
        let of_variants = || self.variants.iter().flat_map(|variant| variant.flags.keys());
        for name in self.flags.keys().chain(self.vary.keys()).chain(of_variants()) {
            let name = name.replace('_', "-");
            if RESERVED_FLAGS.contains(&name.as_str()) {
                return Err(format!("{name}: the sweep sets this flag itself; leave it out"));
            }
        }
        let tables = [("measure", &self.measure, &RESERVED_MEASURE[..]), ("ifeval", &self.ifeval, &RESERVED_IFEVAL)];
        for (table, flags, reserved) in tables {
            for name in flags.iter().flat_map(Table::keys) {
                let name = name.replace('_', "-");
                if reserved.contains(&name.as_str()) {
                    return Err(format!("[{table}] {name}: the sweep sets this flag itself; leave it out"));
                }
            }
        }
        if self.ifeval.is_some() && self.method == "reward" {
            return Err("[ifeval]: a reward model writes no responses; leave the table out".into());
        }
        for (at, name) in self.inputs.iter().enumerate() {
            if !is_name(name) {
                return Err(format!("inputs: {name:?} is not a name of lower-case letters, digits, - and _"));
            }
            let others = ["out", VARIANT].contains(&name.as_str()) || self.vary.contains_key(name);
            if others || self.inputs[..at].contains(name) {
                return Err(format!("inputs: the name {name} is taken; choose another"));
            }
        }
        if let Some(name) = self.vary.keys().find(|name| self.flags.contains_key(*name)) {
            return Err(format!("{name} is both in [flags] and in [vary]; remove it from one of them"));
        }
        if self.vary.contains_key(VARIANT) {
            return Err(format!("[vary] {VARIANT} names no flag; use [[variants]]"));
        }
        for (at, variant) in self.variants.iter().enumerate() {
            let name = &variant.name;
            if name.is_empty() || self.variants[..at].iter().any(|other| other.name == *name) {
                return Err(format!("variant {name:?}: every variant needs a unique name"));
            }
            if let Some(flag) = variant.flags.keys().find(|flag| self.vary.contains_key(*flag)) {
                return Err(format!("{flag} is both in [vary] and in variant {name:?}; remove it from one of them"));
            }
        }
        match self.prepare.iter().find(|command| command.is_empty() || command[0] == "study") {
            Some(command) => Err(format!("prepare: {command:?} is not a command of this program that can run here")),
            None => Ok(()),
        }
    }

    /// Point `index` of the grid. The last axis changes fastest.
    fn point(
        &self,
        axes: &[(&str, &[Value])],
        index: usize,
        out: &str,
        given: &[(String, String)],
    ) -> Result<Point, String> {
        let mut rest = index;
        let mut chosen: Vec<(&str, &Value)> = Vec::new();
        for (name, list) in axes.iter().rev() {
            chosen.push((name, &list[rest % list.len()]));
            rest /= list.len();
        }
        chosen.reverse();
        let variant = self.variants.get(rest);
        let mut places = vec![("out".to_owned(), out.to_owned())];
        places.extend(variant.map(|variant| (VARIANT.to_owned(), variant.name.clone())));
        for (name, value) in &chosen {
            places.push(((*name).to_owned(), value_text(value)?));
        }
        let of_variant = variant.map(|variant| &variant.flags);
        let shared = self.flags.iter().filter(|(name, _)| of_variant.is_none_or(|flags| !flags.contains_key(*name)));
        let mut arguments = Vec::new();
        for (name, value) in shared.chain(of_variant.into_iter().flatten()) {
            arguments.extend(words(name, value)?);
        }
        for (name, value) in &chosen {
            arguments.extend(words(name, value)?);
        }
        let values = places[1..].iter().map(|(_, value)| value.clone()).collect();
        places.extend(given.iter().cloned());
        let after = |flags: &Option<Table>| -> Result<Option<Vec<String>>, String> {
            let Some(flags) = flags else { return Ok(None) };
            let mut arguments = Vec::new();
            for (name, value) in flags {
                arguments.extend(words(name, value)?);
            }
            filled(&arguments, &places).map(Some)
        };
        Ok(Point {
            name: format!("p{:03}", index + 1),
            values,
            words: filled(&arguments, &places)?,
            prepare: self.prepare.iter().map(|command| filled(command, &places)).collect::<Result<_, _>>()?,
            measure: after(&self.measure)?,
            ifeval: after(&self.ifeval)?,
        })
    }
}

/// Whether `text` can be the name of a placeholder such as `{name}`.
fn is_name(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(rest)
}

/// Returns an error for values that the file does not list as inputs, values given twice, and inputs without
/// a value.
fn check_given(inputs: &[String], given: &[(String, String)]) -> Result<()> {
    for (at, (name, _)) in given.iter().enumerate() {
        if !inputs.contains(name) {
            let has =
                if inputs.is_empty() { "it has none".to_owned() } else { format!("it has {}", inputs.join(", ")) };
            return Err(Error::Usage(format!("--set {name}: the sweep's file has no such input; {has}")));
        }
        if given[..at].iter().any(|(other, _)| other == name) {
            return Err(Error::Usage(format!("--set {name} is given twice; keep one")));
        }
    }
    let missing: Vec<String> = (inputs.iter())
        .filter(|name| given.iter().all(|(other, _)| other != *name))
        .map(|name| format!("--set {name}=..."))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Usage(format!("the sweep's file needs {}", missing.join(" ")))),
    }
}

/// Replaces every `{name}` with its value in `places`. Braces around other text, as in JSON, stay.
fn filled(words: &[String], places: &[(String, String)]) -> Result<Vec<String>, String> {
    let one = |word: &String| {
        let mut out = String::new();
        let mut rest = word.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            match after.split_once('}').filter(|(name, _)| is_name(name)) {
                Some((name, after)) => {
                    let Some((_, value)) = places.iter().find(|(known, _)| known == name) else {
                        let known: Vec<&str> = places.iter().map(|place| place.0.as_str()).collect();
                        return Err(format!("{word}: {{{name}}} is not one of {}", known.join(", ")));
                    };
                    out.push_str(value);
                    rest = after;
                }
                None => {
                    out.push('{');
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        Ok(out)
    };
    words.iter().map(one).collect()
}

/// Formats a value as a command line argument.
fn value_text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(yes) => Ok(yes.to_string()),
        Value::Array(list) => Ok(list.iter().map(value_text).collect::<Result<Vec<_>, _>>()?.join(" ")),
        Value::Datetime(_) | Value::Table(_) => Err("the value of a flag must not be a date or a table".into()),
    }
}

/// Command line arguments of a flag: `true` gives the bare flag, `false` gives nothing.
fn words(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let flag = format!("--{}", name.replace('_', "-"));
    Ok(match value {
        Value::Boolean(true) => vec![flag],
        Value::Boolean(false) => Vec::new(),
        Value::Array(list) => {
            [flag].into_iter().chain(list.iter().map(value_text).collect::<Result<Vec<_>, _>>()?).collect()
        }
        // Flag and value are a single argument, so that a value with a leading dash is not parsed as a flag.
        value => vec![format!("{flag}={}", value_text(value)?)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(text: &str) -> Result<Grid, String> {
        grid_with(text, &[])
    }

    fn grid_with(text: &str, given: &[(&str, &str)]) -> Result<Grid, String> {
        let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        Grid::read(&path, Path::new("grid"), &given).map_err(|e| e.to_string())
    }

    #[test]
    fn points_are_the_product_of_the_lists() {
        let text = "method = \"dpo\"\n[flags]\nmax_steps = 3\ntrain-file = [\"a\", \"b\"]\n[vary]\nbeta = [0.1, -1]\nquick = \
                    [true, false, true]\n";
        let grid = grid(text).unwrap();
        assert_eq!(grid.axes, ["beta", "quick"]);
        assert_eq!(grid.points.len(), 6);
        let last = &grid.points[4];
        assert_eq!((last.name.as_str(), &last.values[..]), ("p005", &["-1".to_owned(), "false".into()][..]));
        assert_eq!(last.words, ["--max-steps=3", "--train-file", "a", "b", "--beta=-1"]);
        assert_eq!(grid.points[3].words.last().unwrap(), "--quick");
    }

    #[test]
    fn variants_come_first_and_places_are_filled() {
        let text = "method = \"reward\"\nprepare = [[\"data\", \"language\", \"--output={out}/{seed}\"]]\n[flags]\nk = 1\n\
                    kwargs = '{\"a\": {\"seed\": 1}}'\nmax-steps = 5\n[vary]\nseed = [7, 8]\n[[variants]]\nname = \"b\"\n\
                    [[variants]]\nname = \"a\"\nflags = { max-steps = 9 }\n[measure]\ninput = \"{out}/{seed}-{variant}\"\n";
        let grid = grid(text).unwrap();
        assert_eq!(grid.axes, ["variant", "seed"]);
        let values: Vec<String> = grid.points.iter().map(|point| point.values.join(" ")).collect();
        assert_eq!(values, ["b 7", "b 8", "a 7", "a 8"]);
        assert_eq!(grid.order(), [0, 2, 1, 3]);
        assert_eq!(grid.points[1].words, ["--k=1", "--kwargs={\"a\": {\"seed\": 1}}", "--max-steps=5", "--seed=8"]);
        assert_eq!(grid.points[3].words[2..], ["--max-steps=9", "--seed=8"]);
        assert_eq!(grid.points[2].prepare, [["data", "language", "--output=grid/7"]]);
        assert_eq!(grid.points[2].measure.as_deref(), Some(&["--input=grid/7-a".to_owned()][..]));
    }

    #[test]
    fn inputs_are_filled_into_all_words() {
        let text = "method = \"dpo\"\ninputs = [\"model\", \"rows\"]\nprepare = [[\"tokenizer\", \"--input={rows}\"]]\n\
                    [flags]\nmodel = \"{model}\"\n[vary]\nseed = [7]\n[measure]\ninput = \"{rows}\"\n[ifeval]\n\
                    input = \"{rows}\"\ngreedy = true\n";
        let grid = grid_with(text, &[("rows", "a b"), ("model", "m")]).unwrap();
        let point = &grid.points[0];
        assert_eq!(
            (&point.values[..], &point.words[..]),
            (&["7".to_owned()][..], &["--model=m".into(), "--seed=7".into()][..])
        );
        assert_eq!(point.prepare, [["tokenizer", "--input=a b"]]);
        assert_eq!(point.measure.as_deref(), Some(&["--input=a b".to_owned()][..]));
        assert_eq!(point.ifeval.as_deref(), Some(&["--greedy".to_owned(), "--input=a b".into()][..]));
        for (given, part) in [
            (&[("model", "m")][..], "needs --set rows=..."),
            (&[], "needs --set model=... --set rows=..."),
            (
                &[("model", "m"), ("rows", "r"), ("file", "f")],
                "--set file: the sweep's file has no such input; it has model, rows",
            ),
            (&[("model", "m"), ("rows", "r"), ("model", "n")], "--set model is given twice"),
        ] {
            let error = grid_with(text, given).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn errors_name_their_line() {
        for (text, part) in [
            ("method = \"ppo\"\n[flags]\n[vary]\na = [1]", "one of sft, reward, dpo, kto"),
            ("method = \"dpo\"\n[flags]\n[vary]\n", "[vary] is empty"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = 1", "a: a list"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = []", "a: a list"),
            ("method = \"dpo\"\n[flags]\na = 1\n[vary]\na = [1]", "both in"),
            ("method = \"dpo\"\n[flags]\noutput_dir = \"x\"\n[vary]\na = [1]", "output-dir: the sweep sets"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = [1979-05-27]", "must not be a date"),
            ("method = \"dpo\"\n[flags\n[vary]\na = [1]", "sweep.toml:2"),
            ("method = \"dpo\"\n[flags]\n[varies]\na = [1]", "a sweep needs method, [flags], and [vary]"),
            ("method = \"dpo\"\n[flags]\n[vary]\nvariant = [1]", "use [[variants]]"),
            ("method = \"dpo\"\n[flags]\n[[variants]]\nname = \"a\"\n[[variants]]\nname = \"a\"", "a unique name"),
            (
                "method = \"dpo\"\n[flags]\n[vary]\na = [1]\n[[variants]]\nname = \"x\"\nflags = { a = 1 }",
                "in [vary] and in",
            ),
            ("method = \"dpo\"\n[flags]\nb = \"{c}\"\n[vary]\na = [1]", "{c} is not one of out, a"),
            ("method = \"dpo\"\nprepare = [[]]\n[flags]\n[vary]\na = [1]", "prepare: []"),
            ("method = \"dpo\"\n[flags]\n[vary]\na = [1]\n[measure]\nmodel = \"m\"", "[measure] model: the sweep sets"),
            (
                "method = \"dpo\"\n[flags]\n[vary]\na = [1]\n[ifeval]\nresponses = \"m\"",
                "[ifeval] responses: the sweep",
            ),
            ("method = \"reward\"\n[flags]\n[vary]\na = [1]\n[ifeval]\ninput = \"m\"", "a reward model writes no"),
            ("method = \"dpo\"\ninputs = [\"A\"]\n[flags]\n[vary]\na = [1]", "\"A\" is not a name"),
            ("method = \"dpo\"\ninputs = [\"a\"]\n[flags]\n[vary]\na = [1]", "the name a is taken"),
            ("method = \"dpo\"\ninputs = [\"b\", \"b\"]\n[flags]\n[vary]\na = [1]", "the name b is taken"),
            (&format!("method = \"dpo\"\n[flags]\n[vary]\na = [{0}]\nb = [{0}]", "1, ".repeat(40)), "more than 1000"),
        ] {
            let error = grid(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
