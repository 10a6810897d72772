//! The KERNEL and KERNELS lines of `kernels/*.cu`, from which `build.rs` generates the launchers.
//! `kernels/README.md` has the grammar:
//!
//! ```text
//! KERNEL(threads, name, MARK, ...)(parameters) {
//!
//! template <class T, int AXIS>
//! KERNELS(threads, name, FOR(AXIS: value value ...; T: f32 bf16),
//!         IF(AXIS: value ...; MARK ...), MARK, ...)(parameters) {
//! ```
//!
//! KERNEL declares one entry point. KERNELS declares a family, which has one entry point for each combination
//! of the values of its axes.

use super::exports::{Export, numbered, split};

/// Maximum number of entry points of a family.
const MAX_KERNELS: usize = 1000;

/// Type of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Read(Element),
    Write(Element),
    Int,
    Long,
    Float,
    Double,
    TensorMap,
    /// An exported enum, by its name.
    Enum(String),
}

/// Element type of a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    F64,
    Bf16,
    I32,
    /// The storage axis of a family: f32 or bf16.
    Storage,
}

impl Kind {
    /// Bytes of a parameter.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Int | Self::Float | Self::Enum(_) => 4,
            Self::Read(_) | Self::Write(_) | Self::Long | Self::Double => 8,
            Self::TensorMap => 128,
        }
    }
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub kind: Kind,
}

/// Type of the values of an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AxisKind {
    /// `class T`: storage of activations, `f32 bf16`.
    Storage,
    /// `int AXIS`: numbers.
    Int,
    /// An exported enum, whose values are written `ending=ENUMERATOR`.
    Enum(String),
}

/// An axis of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub name: String,
    pub kind: AxisKind,
    pub values: Vec<Value>,
}

/// A value of an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Text that stands for the value in the entry point's name.
    pub ending: String,
    /// Template argument in C++.
    pub argument: String,
}

/// One entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    pub threads: u32,
    /// Blocks of a cluster; 1 without clusters.
    pub cluster: u32,
    pub coresident: bool,
    pub early: bool,
    /// Whether a block has a multiprocessor to itself.
    pub alone: bool,
    /// Index of the kernel's value on each axis of its family.
    pub values: Vec<usize>,
}

/// A KERNEL or KERNELS line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Name of the only entry point, or prefix of the names of a family.
    pub name: String,
    pub parameters: Vec<Parameter>,
    /// Axes in the order of FOR, which is also their order in the names of entry points; empty for a KERNEL.
    pub axes: Vec<Axis>,
    /// Index in `axes` of each template parameter's axis.
    pub template: Vec<usize>,
    /// Entry points; the last axis of FOR varies fastest.
    pub kernels: Vec<Kernel>,
}

/// Parses the KERNEL and KERNELS lines of a file. An error names its line, counted from 1, and the
/// cause.
pub fn parse(source: &str, exports: &[Export]) -> Result<Vec<Declaration>, String> {
    let mut declarations = Vec::new();
    let mut before = "";
    for (number, line, text) in numbered(source) {
        let declared = if line.starts_with("KERNEL(") {
            Some(single(text, before, exports))
        } else if line.starts_with("KERNELS(") {
            Some(family(text, before, exports))
        } else {
            None
        };
        if let Some(declared) = declared {
            declarations.push(declared.map_err(|why| format!("line {number}: {why}"))?);
        }
        before = line;
    }
    Ok(declarations)
}

fn single(text: &str, before: &str, exports: &[Export]) -> Result<Declaration, String> {
    if before.starts_with("template") {
        return Err("KERNEL must not follow a template line; KERNELS declares the entry points of a template".into());
    }
    let Head { threads, name, marks, parameters } = head(text, "KERNEL")?;
    let parameters = parameters_of(&parameters, false, exports)?;
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    let kernel = kernel(name.clone(), threads, &marks, Vec::new())?;
    Ok(Declaration { name, parameters, axes: Vec::new(), template: Vec::new(), kernels: vec![kernel] })
}

fn family(text: &str, before: &str, exports: &[Export]) -> Result<Declaration, String> {
    let Head { threads, name, marks, parameters } = head(text, "KERNELS")?;
    let template = template_parameters(before)?;
    let Some(axes) = marks.first().and_then(|mark| inside(mark, "FOR")) else {
        return Err("the first mark of a KERNELS is not FOR(AXIS: values; ...)".into());
    };
    let axes = split(axes, ';').map(|text| axis(text, &template, exports)).collect::<Result<Vec<Axis>, _>>()?;
    let find = |name: &str| axes.iter().position(|axis| axis.name == name);
    let template = template
        .iter()
        .map(|(_, name)| find(name).ok_or_else(|| format!("template parameter `{name}` has no values in FOR")))
        .collect::<Result<Vec<_>, _>>()?;
    if template.len() != axes.len() {
        return Err("FOR lists an axis twice".into());
    }
    let count = axes.iter().try_fold(1usize, |count, axis| count.checked_mul(axis.values.len()));
    if count.is_none_or(|count| count > MAX_KERNELS) {
        return Err(format!("FOR makes more than {MAX_KERNELS} kernels"));
    }
    let parameters = parameters_of(&parameters, true, exports)?;
    let mut kernels = Vec::new();
    for values in combinations(&axes) {
        let endings: Vec<&str> = axes.iter().zip(&values).map(|(axis, &v)| axis.values[v].ending.as_str()).collect();
        let (mut threads, mut own) = (threads, Vec::new());
        for mark in &marks[1..] {
            let Some(rule) = inside(mark, "IF") else {
                own.push(mark.as_str());
                continue;
            };
            for mark in holds(rule, &axes, &endings)?.into_iter().flatten() {
                match inside(mark, "THREADS") {
                    Some(number) => threads = thread_count(number)?,
                    None => own.push(mark),
                }
            }
        }
        kernels.push(kernel(format!("{name}_{}", endings.join("_")), threads, &own, values)?);
    }
    Ok(Declaration { name, parameters, axes, template, kernels })
}

/// Text of a declaration up to its body, without comments.
struct Head {
    threads: u32,
    name: String,
    marks: Vec<String>,
    parameters: String,
}

fn head(text: &str, keyword: &str) -> Result<Head, String> {
    let body = text.find('{').ok_or(format!("a {keyword} without a body"))?;
    // Removes the comments after parameters, which give array shapes.
    let head: String =
        text[..body].lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + " ").collect();
    let (marks, rest) = closed(head.strip_prefix(keyword).unwrap_or(&head))?;
    let (parameters, rest) = closed(rest.trim_start())?;
    if !rest.trim().is_empty() {
        return Err(format!("unexpected `{}` between the parameters and the body", rest.trim()));
    }
    let mut marks = split(marks, ',').map(str::to_owned);
    let threads = thread_count(&marks.next().unwrap_or_default())?;
    let name = marks.next().filter(|name| is_name(name)).ok_or(format!("a {keyword} without a name"))?;
    Ok(Head { threads, name, marks: marks.collect(), parameters: parameters.to_owned() })
}

fn thread_count(text: &str) -> Result<u32, String> {
    let threads: u32 = text.trim().parse().map_err(|_| format!("`{text}` is not a number of threads"))?;
    if threads == 0 || threads > 1024 || !threads.is_multiple_of(32) {
        return Err(format!("{threads} threads; blocks are whole warps, at most 1024 threads"));
    }
    Ok(threads)
}

fn kernel(name: String, threads: u32, marks: &[&str], values: Vec<usize>) -> Result<Kernel, String> {
    let mut kernel = Kernel { name, threads, cluster: 1, coresident: false, early: false, alone: false, values };
    for mark in marks {
        let number = |of: &str| inside(mark, of).and_then(|text| text.parse::<u32>().ok());
        match (*mark, number("CLUSTER"), number("ALONE")) {
            ("CORESIDENT", ..) => kernel.coresident = true,
            ("EARLY", ..) => kernel.early = true,
            (_, Some(blocks @ 2..=8), _) => kernel.cluster = blocks,
            (_, _, Some(same)) if same == threads => kernel.alone = true,
            _ => {
                return Err(format!(
                    "`{mark}` is not a mark; marks are CLUSTER(2 to 8), CORESIDENT, EARLY and ALONE({threads})"
                ));
            }
        }
    }
    Ok(kernel)
}

/// Kind and name of each parameter of `template <class T, int AXIS>`.
fn template_parameters(line: &str) -> Result<Vec<(&str, &str)>, String> {
    let refuse = || format!("`{line}` before KERNELS; expected `template <class T, int AXIS>` on one line");
    let list = line.strip_prefix("template <").and_then(|rest| rest.strip_suffix('>')).ok_or_else(refuse)?;
    list.split(',').map(|parameter| parameter.trim().split_once(' ').ok_or_else(refuse)).collect()
}

/// An axis of FOR: `AXIS: value value`.
fn axis(text: &str, template: &[(&str, &str)], exports: &[Export]) -> Result<Axis, String> {
    let (name, values) = text.split_once(':').ok_or(format!("`{text}` in FOR; expected `AXIS: value value`"))?;
    let Some((kind, _)) = template.iter().find(|(_, parameter)| *parameter == name) else {
        return Err(format!("axis `{name}` is not a parameter of the template"));
    };
    let words: Vec<&str> = values.split_whitespace().collect();
    let value = |ending: &str, argument: &str| Value { ending: ending.into(), argument: argument.into() };
    let (kind, values) = match *kind {
        "class" if words == ["f32", "bf16"] => (AxisKind::Storage, vec![value("f32", "float"), value("bf16", "bf16")]),
        "class" => return Err(format!("values `{}` of axis `{name}`; storages are `f32 bf16`", values.trim())),
        "int" => {
            if let Some(word) = words.iter().find(|word| word.parse::<u32>().is_err()) {
                return Err(format!("value `{word}` of axis `{name}` is not a number"));
            }
            (AxisKind::Int, words.iter().map(|word| value(word, word)).collect())
        }
        of => {
            let enumerators = exports.iter().find(|e| e.name == of).and_then(|e| e.enumerators());
            let enumerators = enumerators.ok_or(format!("`{of}` is neither class, int nor an exported enum"))?;
            let known = |word: &&str| {
                let (ending, argument) = word.split_once('=')?;
                enumerators.iter().any(|e| e == argument).then(|| value(ending, argument))
            };
            let values = words.iter().map(|word| {
                known(word).ok_or(format!("value `{word}` of axis `{name}`; expected `ending=ENUMERATOR of {of}`"))
            });
            (AxisKind::Enum(of.into()), values.collect::<Result<_, _>>()?)
        }
    };
    if values.is_empty() || values.iter().enumerate().any(|(i, value)| values[..i].contains(value)) {
        return Err(format!("axis `{name}` has no values, or lists a value twice"));
    }
    Ok(Axis { name: name.into(), kind, values })
}

/// Returns every combination of values as one value index per axis; the last axis varies fastest.
fn combinations(axes: &[Axis]) -> Vec<Vec<usize>> {
    axes.iter().fold(vec![Vec::new()], |all, axis| {
        let with = |start: &Vec<usize>, value| start.iter().copied().chain([value]).collect();
        all.iter().flat_map(|start| (0..axis.values.len()).map(move |value| with(start, value))).collect()
    })
}

/// Returns the marks of `IF(AXIS: value ...; MARK ...)` if its conditions hold for the entry point with these
/// value endings.
fn holds<'a>(rule: &'a str, axes: &[Axis], endings: &[&str]) -> Result<Option<Vec<&'a str>>, String> {
    let (mut marks, mut conditions, mut met) = (Vec::new(), 0, true);
    for part in split(rule, ';') {
        let Some((name, values)) = part.split_once(':') else {
            marks.extend(part.split_whitespace());
            continue;
        };
        let index = axes.iter().position(|axis| axis.name == name);
        let index = index.ok_or(format!("axis `{name}` of IF is not in FOR"))?;
        for value in values.split_whitespace() {
            if axes[index].values.iter().all(|known| known.ending != value) {
                return Err(format!("value `{value}` of IF is not a value of axis `{name}`"));
            }
        }
        conditions += 1;
        met &= values.split_whitespace().any(|value| value == endings[index]);
    }
    if marks.is_empty() || conditions == 0 {
        return Err(format!("`IF({rule})`; expected `IF(AXIS: values; MARKS)`"));
    }
    Ok(met.then_some(marks))
}

/// The text inside `name(...)`.
fn inside<'a>(mark: &'a str, name: &str) -> Option<&'a str> {
    mark.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')
}

/// The text in the brackets at the start of `text`, and the text after them.
fn closed(text: &str) -> Result<(&str, &str), String> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Ok((&text[1..i], &text[i + 1..])),
            ')' => depth -= 1,
            _ if depth == 0 => break,
            _ => {}
        }
    }
    Err("brackets that do not close".to_owned())
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn parameters_of(text: &str, family: bool, exports: &[Export]) -> Result<Vec<Parameter>, String> {
    split(text, ',').map(|text| parameter(text, family, exports)).collect()
}

fn parameter(text: &str, family: bool, exports: &[Export]) -> Result<Parameter, String> {
    let refuse = || {
        let (of, map) = if family { ("T, ", "const TensorDescriptor& name") } else { ("", "TensorMap name") };
        format!(
            "`{text}` is not a parameter; parameters are `const T* name` and `T* name` of {of}float, double, bf16 or int, \
             `int name`, `long long name`, `float name`, `double name`, `{map}` and `Enum name` of an exported enum"
        )
    };
    let (kind, name) = text.rsplit_once([' ', '*']).ok_or_else(refuse)?;
    let pointer = text.contains('*');
    let words: Vec<&str> = kind.split([' ', '*']).filter(|word| !word.is_empty()).collect();
    let element = |word: &str| match word {
        "float" => Some(Element::F32),
        "double" => Some(Element::F64),
        "bf16" => Some(Element::Bf16),
        "int" => Some(Element::I32),
        "T" if family => Some(Element::Storage),
        _ => None,
    };
    let kind = match (pointer, words.as_slice()) {
        (true, ["const", of]) => element(of).map(Kind::Read),
        (true, [of]) => element(of).map(Kind::Write),
        (false, ["int"]) => Some(Kind::Int),
        (false, ["long", "long"]) => Some(Kind::Long),
        (false, ["float"]) => Some(Kind::Float),
        (false, ["double"]) => Some(Kind::Double),
        (false, ["TensorMap"]) if !family => Some(Kind::TensorMap),
        (false, ["const", "TensorDescriptor&"]) if family => Some(Kind::TensorMap),
        (false, [of]) => {
            let exported = exports.iter().any(|export| export.name == *of && export.enumerators().is_some());
            exported.then(|| Kind::Enum((*of).to_owned()))
        }
        _ => None,
    };
    match kind {
        Some(kind) if is_name(name) => Ok(Parameter { name: name.to_owned(), kind }),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
template <class T> DEVICE void body(const T* x) {}

KERNEL(256, scale_bf16)(const bf16* x,  // (rows, cols)
                        float* y, const int* order, long long rows, int cols,
                        float factor) {
    body(x);
}
KERNEL(128, turn, CLUSTER(2), CORESIDENT, EARLY, ALONE(128))(TensorMap map, Shape shape) {}

template <class T, int HEAD>
KERNELS(128, attend, FOR(HEAD: 64 256; T: f32 bf16), IF(HEAD: 256; T: f32; THREADS(64)),
        EARLY)(const T* x, float* y) {}

template <Shape SHAPE>
KERNELS(384, product, FOR(SHAPE: 128=SMALL 256_turns=LARGE), IF(SHAPE: 256_turns; CLUSTER(2) CORESIDENT), ALONE(384))(
    const TensorDescriptor& a, int m) {}
";

    fn exports() -> Vec<Export> {
        super::super::exports::parse("EXPORT enum Shape : int { SMALL, LARGE };").unwrap()
    }

    #[test]
    fn kernels_are_read_with_marks_and_parameters() {
        let declarations = parse(TEXT, &exports()).unwrap();
        let kinds: Vec<Kind> = declarations[0].parameters.iter().map(|p| p.kind.clone()).collect();
        let (read, write) = (Kind::Read, Kind::Write);
        let expected =
            [read(Element::Bf16), write(Element::F32), read(Element::I32), Kind::Long, Kind::Int, Kind::Float];
        assert_eq!(kinds, expected);
        let kernel = &declarations[0].kernels[0];
        assert_eq!((kernel.name.as_str(), kernel.threads, kernel.cluster), ("scale_bf16", 256, 1));
        assert!(!kernel.coresident && !kernel.early && !kernel.alone);
        assert_eq!(declarations[0].parameters[4].name, "cols");
        let kernel = &declarations[1].kernels[0];
        assert_eq!((kernel.cluster, kernel.coresident, kernel.early, kernel.alone), (2, true, true, true));
        assert_eq!(declarations[1].parameters[1].kind, Kind::Enum("Shape".into()));
        assert_eq!(declarations.len(), 4);
    }

    #[test]
    fn families_have_a_kernel_for_each_combination() {
        let declarations = parse(TEXT, &exports()).unwrap();
        let attend = &declarations[2];
        let names: Vec<(&str, u32)> = attend.kernels.iter().map(|k| (k.name.as_str(), k.threads)).collect();
        assert_eq!(
            names,
            [("attend_64_f32", 128), ("attend_64_bf16", 128), ("attend_256_f32", 64), ("attend_256_bf16", 128)]
        );
        assert_eq!((&attend.template[..], &attend.kernels[3].values[..]), (&[1, 0][..], &[1, 1][..]));
        assert_eq!(attend.parameters[0].kind, Kind::Read(Element::Storage));
        assert!(attend.kernels.iter().all(|k| k.early));
        let product = &declarations[3];
        let marks: Vec<_> = product.kernels.iter().map(|k| (k.name.as_str(), k.cluster, k.coresident)).collect();
        assert_eq!(marks, [("product_128", 1, false), ("product_256_turns", 2, true)]);
        assert_eq!(product.axes[0].values[1].argument, "LARGE");
        assert_eq!(product.parameters[0].kind, Kind::TensorMap);
    }

    #[test]
    fn an_error_names_its_line_and_cause() {
        let numbers = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(" ");
        let family = |template: &str, marks: &str, parameters: &str| {
            format!("template <{template}>\nKERNELS(64, a{marks})({parameters}) {{}}")
        };
        for (text, why) in [
            ("\nKERNEL(100, a)() {}".to_owned(), "line 2: 100 threads"),
            ("KERNEL(many, a)() {}".into(), "`many` is not a number"),
            ("KERNEL(32, a)(half x) {}".into(), "`half x` is not a parameter"),
            ("KERNEL(32, a)(const long* x) {}".into(), "not a parameter"),
            ("KERNEL(32, a)(const T* x) {}".into(), "not a parameter"),
            ("KERNEL(32, a)(const TensorDescriptor& x) {}".into(), "not a parameter"),
            ("KERNEL(32, a, CLUSTER(9))() {}".into(), "`CLUSTER(9)` is not a mark"),
            ("KERNEL(64, a, ALONE(32))() {}".into(), "`ALONE(32)` is not a mark"),
            ("KERNEL(32, a)(int x".into(), "without a body"),
            ("KERNEL(32, a(int x) {}".into(), "brackets"),
            ("KERNEL(32, 9a)() {}".into(), "without a name"),
            ("template <class T>\nKERNEL(32, a)() {}".into(), "line 2: KERNEL must not follow a template line"),
            ("KERNELS(32, a, FOR(T: f32 bf16))() {}".into(), "line 1: `` before KERNELS"),
            (family("class T", ", EARLY", ""), "line 2: the first mark of a KERNELS is not FOR"),
            (family("class T", ", FOR(T: f32)", ""), "storages are `f32 bf16`"),
            (family("class T, int N", ", FOR(T: f32 bf16)", ""), "`N` has no values"),
            (family("int N", ", FOR(N: 1; N: 2)", ""), "FOR lists an axis twice"),
            (family("int N", ", FOR(N: 1 1)", ""), "lists a value twice"),
            (family("int M, int N", &format!(", FOR(M: {0}; N: {0})", numbers(40)), ""), "more than 1000 kernels"),
            (family("int N", ", FOR(N: one)", ""), "`one` of axis `N` is not a number"),
            (family("int N", ", FOR(M: 1)", ""), "`M` is not a parameter of the template"),
            (family("Form N", ", FOR(N: 1=ONE)", ""), "`Form` is neither"),
            (family("Shape N", ", FOR(N: 1=MIDDLE)", ""), "`1=MIDDLE` of axis `N`"),
            (family("int N", ", FOR(N: 1), IF(M: 1; EARLY)", ""), "axis `M` of IF"),
            (family("int N", ", FOR(N: 1), IF(N: 2; EARLY)", ""), "`2` of IF"),
            (family("int N", ", FOR(N: 1), IF(N: 1)", ""), "`IF(N: 1)`; expected"),
            (family("int N", ", FOR(N: 1), IF(N: 1; THREADS(33))", ""), "33 threads"),
            (family("int N", ", FOR(N: 1)", "TensorMap map"), "`TensorMap map` is not a parameter"),
        ] {
            let error = parse(&text, &exports()).unwrap_err();
            assert!(error.contains(why), "{text:?} gave {error:?}");
        }
    }
}
