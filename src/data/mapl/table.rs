//! Prints a report as an aligned table.

use std::fmt;

use super::report::Report;
use crate::data::instructions;
use crate::terminal::counted;

const COLUMNS: [&str; 8] = ["", "total", "base", "intra", "changed", "up", "down", "infeasible"];

/// Meaning of the columns.
const LEGEND: &str = "\
base: the chosen response against the rejected one, as in the rows
intra: one response under two prompts that it follows to different degrees
changed: instructions of these prompts whose arguments differ
up, down: the pair under an added instruction, which must widen (up) or narrow (down) its gap
infeasible: draws that found no arguments with the required outcome for the responses
";

/// A line: label and up to seven cells.
type Line = (String, Vec<String>);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let mut widths = COLUMNS.map(str::len);
        for (label, cells) in &lines {
            widths[0] = widths[0].max(label.chars().count());
            for (width, cell) in widths[1..].iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut write = |label: &str, cells: &[&str]| {
            let mut line = format!("{label:<width$}", width = widths[0]);
            for (cell, width) in cells.iter().zip(&widths[1..]) {
                line += &format!("  {cell:>width$}");
            }
            writeln!(f, "{}", line.trim_end())
        };
        write(COLUMNS[0], &COLUMNS[1..])?;
        for (label, cells) in &lines {
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            write(label, &cells)?;
        }
        if self.extended > 0 {
            f.write_str(LEGEND)?;
        }
        Ok(())
    }
}

/// Formats a count; zero is a dash.
fn count(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { n.to_string() }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |s| format!("{:.1}%", 100.0 * s))
}

impl Report {
    fn lines(&self) -> Vec<Line> {
        let total = |label: &str, n: u64| (label.to_owned(), vec![n.to_string()]);
        let mut lines = vec![
            total("rows read", self.rows),
            total("groups written", self.groups),
            total("  with comparisons added", self.extended),
            total("prompts", self.prompts),
            total("sequences", self.sequences),
        ];
        let [base, intra, _] = self.comparisons;
        let [up, down] = self.directions;
        let all = self.comparisons.iter().sum::<u64>();
        let cells = |cells: [String; 7]| cells.to_vec();
        let blank = String::new;
        let by_kind = [all.to_string(), count(base), count(intra), blank(), count(up), count(down), blank()];
        lines.push(("comparisons".into(), cells(by_kind)));
        for (name, n) in ["rule A", "rule B", "bare"].into_iter().zip(self.rules) {
            if n > 0 {
                lines.push((format!("  {name}"), vec![blank(), blank(), n.to_string()]));
            }
        }
        for (&k, n) in &self.sizes {
            let sum = (n.intra + n.up + n.down).to_string();
            let row = [sum, blank(), count(n.intra), blank(), count(n.up), count(n.down), blank()];
            lines.push((format!("  of {}", counted(k, "instruction")), cells(row)));
        }
        for (&changed, &n) in &self.changed {
            let row = vec![blank(), blank(), blank(), n.to_string()];
            lines.push((format!("  with {}", counted(changed, "changed argument")), row));
        }
        // Functions are listed in the order of `instructions::all`; unknown ids come last.
        let known = instructions::all().iter().map(|f| f.id);
        let unknown = self.functions.keys().map(String::as_str).filter(|id| instructions::by_id(id).is_none());
        for id in known.chain(unknown) {
            let Some(n) = self.functions.get(id) else { continue };
            let sum = (n.intra + n.up + n.down).to_string();
            let tail = [count(n.intra), count(n.changed), count(n.up), count(n.down), count(n.infeasible)];
            lines.push((id.to_owned(), [vec![sum, blank()], tail.to_vec()].concat()));
            if n.mentioned > 0 {
                lines.push(("  already in the prompt".into(), vec![n.mentioned.to_string()]));
            }
        }
        for (what, reasons) in &self.dropped {
            for (reason, n) in reasons {
                lines.push((format!("not built, {what}: {reason}"), vec![n.to_string()]));
            }
        }
        let [better, worse] = self.intra_relations.map(|r| percent(r.share()));
        let [up, down] = self.inter_relations.map(|r| percent(r.share()));
        lines.push(("\"at least\", better prompts".into(), vec![blank(), blank(), better, blank(), up, down]));
        lines.push(("\"at least\", worse prompts".into(), vec![blank(), blank(), worse]));
        for (name, n) in ["chosen", "rejected"].into_iter().zip(self.satisfied) {
            lines.push((format!("instructions met by the {name} response"), vec![percent(n.share())]));
        }
        lines
    }
}
