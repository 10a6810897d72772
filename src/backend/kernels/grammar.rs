//! The KERNEL lines of `kernels/*.cu`, from which `build.rs` makes the launchers. The grammar is in `kernels/README.md`.
//!
//! `KERNEL(threads, name)(parameters) {` begins a line; marks follow the name: `CLUSTER(blocks)`, `CORESIDENT`,
//! `EARLY`, `ALONE(threads)`. Parameters are `const T* name`, `T* name` (T one of float, double, bf16, int), `int`, `long long`,
//! `float`, `double` and `TensorMap`, one name each.

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read(Element),
    Write(Element),
    Int,
    Long,
    Float,
    Double,
    TensorMap,
}

/// What a pointer points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    F64,
    Bf16,
    I32,
}

impl Kind {
    /// Bytes of a parameter.
    pub fn bytes(self) -> usize {
        match self {
            Self::Int | Self::Float => 4,
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

/// One entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    pub threads: u32,
    /// Blocks of a cluster; 1 without clusters.
    pub cluster: u32,
    pub coresident: bool,
    pub early: bool,
    pub parameters: Vec<Parameter>,
}

/// All kernels of a file, or what is wrong in which line (counted from 1).
pub fn parse(source: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    let mut offset = 0;
    for (number, line) in source.lines().enumerate() {
        if line.starts_with("KERNEL(") {
            let kernel = kernel(&source[offset..]).map_err(|why| format!("line {}: {why}", number + 1))?;
            kernels.push(kernel);
        }
        offset += line.len() + 1;
    }
    Ok(kernels)
}

fn kernel(text: &str) -> Result<Kernel, String> {
    let body = text.find('{').ok_or("a KERNEL without a body")?;
    // Comments beside parameters say their shapes.
    let head: String = text[..body].lines().map(|line| line.split("//").next().unwrap_or("")).collect();
    let (marks, rest) = closed(head.strip_prefix("KERNEL").unwrap_or(&head))?;
    let (parameters, rest) = closed(rest.trim_start())?;
    if !rest.trim().is_empty() {
        return Err(format!("`{}` between the parameters and the body", rest.trim()));
    }
    let mut marks = marks.split(',').map(str::trim);
    let threads = marks.next().unwrap_or("");
    let threads: u32 = threads.parse().map_err(|_| format!("`{threads}` is no number of threads"))?;
    if threads == 0 || threads > 1024 || !threads.is_multiple_of(32) {
        return Err(format!("{threads} threads: whole warps, at most 1024"));
    }
    let name = marks.next().filter(|name| is_name(name)).ok_or("a KERNEL without a name")?.to_owned();
    let mut kernel = Kernel { name, threads, cluster: 1, coresident: false, early: false, parameters: Vec::new() };
    for mark in marks {
        let number = |of: &str| mark.strip_prefix(of)?.strip_prefix('(')?.strip_suffix(')')?.parse::<u32>().ok();
        match (mark, number("CLUSTER"), number("ALONE")) {
            ("CORESIDENT", ..) => kernel.coresident = true,
            ("EARLY", ..) => kernel.early = true,
            (_, Some(blocks @ 2..=8), _) => kernel.cluster = blocks,
            (_, _, Some(same)) if same == threads => {}
            _ => {
                return Err(format!(
                    "`{mark}` is no mark; CLUSTER(2 to 8), CORESIDENT, EARLY and ALONE({threads}) are"
                ));
            }
        }
    }
    for text in parameters.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        kernel.parameters.push(parameter(text)?);
    }
    Ok(kernel)
}

/// What stands in the brackets at the start of `text`, and what follows them.
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

fn parameter(text: &str) -> Result<Parameter, String> {
    let refuse = || {
        format!(
            "`{text}` is no parameter: const T*, T* (float, double, bf16, int), int, long long, float, double or TensorMap, \
             and a name"
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
        _ => None,
    };
    let kind = match (pointer, words.as_slice()) {
        (true, ["const", of]) => element(of).map(Kind::Read),
        (true, [of]) => element(of).map(Kind::Write),
        (false, ["int"]) => Some(Kind::Int),
        (false, ["long", "long"]) => Some(Kind::Long),
        (false, ["float"]) => Some(Kind::Float),
        (false, ["double"]) => Some(Kind::Double),
        (false, ["TensorMap"]) => Some(Kind::TensorMap),
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
KERNEL(128, turn, CLUSTER(2), CORESIDENT, EARLY, ALONE(128))(TensorMap map) {}
";

    #[test]
    fn kernels_are_read_with_marks_and_parameters() {
        let kernels = parse(TEXT).unwrap();
        let kinds: Vec<Kind> = kernels[0].parameters.iter().map(|p| p.kind).collect();
        let (read, write) = (Kind::Read, Kind::Write);
        let expected =
            [read(Element::Bf16), write(Element::F32), read(Element::I32), Kind::Long, Kind::Int, Kind::Float];
        assert_eq!(kinds, expected);
        assert_eq!((kernels[0].name.as_str(), kernels[0].threads, kernels[0].cluster), ("scale_bf16", 256, 1));
        assert_eq!(kernels[0].parameters[4].name, "cols");
        assert_eq!((kernels[1].cluster, kernels[1].coresident, kernels[1].early), (2, true, true));
        assert!(!kernels[0].coresident && !kernels[0].early);
        assert_eq!(kernels.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, why) in [
            ("\nKERNEL(100, a)() {}", "line 2: 100 threads"),
            ("KERNEL(many, a)() {}", "`many` is no number"),
            ("KERNEL(32, a)(half x) {}", "`half x` is no parameter"),
            ("KERNEL(32, a)(const long* x) {}", "no parameter"),
            ("KERNEL(32, a, CLUSTER(9))() {}", "`CLUSTER(9)` is no mark"),
            ("KERNEL(64, a, ALONE(32))() {}", "`ALONE(32)` is no mark"),
            ("KERNEL(32, a)(int x", "without a body"),
            ("KERNEL(32, a(int x) {}", "brackets"),
            ("KERNEL(32, 9a)() {}", "without a name"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?} gave {error:?}");
        }
    }
}
