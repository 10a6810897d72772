//! KERNEL and KERNELS lines as text, to compare a custom kernel file with the launchers.

use std::path::Path;

use super::Export;
use super::exports::numbered;
use super::grammar::{self, Declaration};
use crate::{Error, Result};

/// A declaration and its location.
pub struct Line {
    /// `file:line`.
    pub place: String,
    pub number: usize,
    /// The declaration up to its body, without comments, with white space reduced to single spaces.
    pub text: String,
    pub declaration: Declaration,
}

/// Parses the declarations of a file. An error names its line.
pub fn read(file: &str, source: &str, exports: &[Export]) -> Result<Vec<Line>, String> {
    let declarations = grammar::parse(source, exports)?;
    let (mut texts, mut before) = (Vec::new(), "");
    for (number, line, text) in numbered(source) {
        if line.starts_with("KERNEL(") || line.starts_with("KERNELS(") {
            let template = if line.starts_with("KERNELS(") { format!("{before} ") } else { String::new() };
            texts.push((number, template + &head(text)));
        }
        before = line;
    }
    let line = |((number, text), declaration): ((usize, String), Declaration)| Line {
        place: format!("{file}:{number}"),
        number,
        text,
        declaration,
    };
    Ok(texts.into_iter().zip(declarations).map(line).collect())
}

/// Text before the body, without comments and with single spaces. Spaces after `(`, and before `(`, `)` and
/// `,`, are removed.
fn head(text: &str) -> String {
    let head = text.split('{').next().unwrap_or("");
    let code: Vec<&str> = head.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
    let text = code.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace("( ", "(").replace(" )", ")").replace(" ,", ",").replace(" (", "(")
}

/// Returns [`Error::Data`] with both lines if a declaration differs from the launcher's.
pub fn compare(path: &Path, own: &Line, shipped: &Line) -> Result<()> {
    if own.declaration == shipped.declaration {
        return Ok(());
    }
    Err(Error::data(
        path,
        own.number,
        None,
        format!(
            "`{}` differs from the launcher's line, {}: `{}`; the host code passes the launcher's parameters, so use \
             that line, or give the kernel a different name and a TOML file next to it",
            own.text, shipped.place, shipped.text
        ),
    ))
}
