//! Report of the quick start: accuracies of all runs, curves, data, commands, environment.

use std::fmt::Write;

use super::axis::Axis;
use super::distribution::smoothed;
use super::page::{Block, Page, Section, Table};
use super::summary::{AccuracyPoint, Count, NamedText, QuickstartSummary, RunSummary};
use super::svg::{Bar, BarChart, BarSeries, LineChart, ReferenceLine, Series};
use super::{NO_VALUE, decimal};

/// Accuracy measure: its name, its counts in a run, and its value at a point of a curve.
struct Measure {
    name: &'static str,
    count: fn(&RunSummary) -> Count,
    point: fn(&AccuracyPoint) -> f64,
}

const MEASURES: [Measure; 3] = [
    Measure { name: "semantic", count: |r| r.semantic, point: |p| p.semantic },
    Measure { name: "intra", count: |r| r.intra, point: |p| p.intra },
    Measure { name: "inter", count: |r| r.inter, point: |p| p.inter },
];

/// Loss curves are running means over 1/20 of the run, which separates runs from noise.
const SMOOTHED_SHARE: usize = 20;

/// Report as one HTML file.
pub fn quickstart_report(summary: &QuickstartSummary) -> String {
    let mut sections = Vec::new();
    if !summary.warnings.is_empty() {
        let blocks = summary.warnings.iter().cloned().map(Block::Warning).collect();
        sections.push(Section { heading: "Warnings".into(), blocks });
    }
    sections.push(results(summary));
    sections.push(curves(summary));
    if !summary.data.is_empty() || !summary.examples.is_empty() {
        sections.push(data(summary));
    }
    sections.push(commands(&summary.commands));
    sections.push(environment(summary));
    let page = Page {
        title: "mapl quick start".into(),
        lead: format!(
            "{} training runs on an artificial preference language, {} seconds in total.",
            summary.runs.len(),
            decimal(summary.seconds, 0)
        ),
        sections,
    };
    page.to_html()
}

/// Table of the runs as plain text that is also a Markdown table.
pub fn quickstart_table(summary: &QuickstartSummary) -> String {
    let mut rows = vec![["run", "semantic", "intra", "inter", "steps", "seconds"].map(str::to_owned).to_vec()];
    for run in &summary.runs {
        let mut row = vec![run.name.replace('|', "/")];
        row.extend(MEASURES.iter().map(|m| accuracy((m.count)(run))));
        row.extend([run.steps.to_string(), decimal(run.seconds, 1)]);
        rows.push(row);
    }
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if c == 0 { write!(out, "| {cell:<width$} ") } else { write!(out, "| {cell:>width$} ") };
        }
        out.push_str("|\n");
        if i == 0 {
            for (c, &width) in widths.iter().enumerate() {
                let _ = if c == 0 {
                    write!(out, "|{}", "-".repeat(width + 2))
                } else {
                    write!(out, "|{}:", "-".repeat(width + 1))
                };
            }
            out.push_str("|\n");
        }
    }
    out
}

fn accuracy(count: Count) -> String {
    if count.total == 0 { NO_VALUE.to_owned() } else { decimal(count.accuracy(), 3) }
}

fn results(summary: &QuickstartSummary) -> Section {
    let mut blocks = vec![
        Block::Paragraph(
            "Every run starts from the same model and is scored on held-out prompts. Guessing gives 0.5. A scorer \
             that ignores the added instructions ties on intra and inter, and ties count as wrong."
                .into(),
        ),
        Block::List(vec![
            "semantic: the chosen response of an original pair scores higher than the rejected one.".into(),
            "intra: a response scores higher under the prompt with the instructions it follows better.".into(),
            "inter: added instructions move the gap between chosen and rejected in the right direction.".into(),
        ]),
        Block::Table(Table {
            caption: "Accuracy on held-out prompts; ties count as wrong".into(),
            header: ["run", "semantic", "intra", "inter", "steps", "seconds"].map(str::to_owned).to_vec(),
            rows: summary.runs.iter().map(result_row).collect(),
            numeric: (1..6).collect(),
        }),
    ];
    let gains = gain_rows(&summary.runs);
    if !gains.is_empty() {
        blocks.push(Block::Table(Table {
            caption: "Gain from the MAPL terms: mapl minus base".into(),
            header: ["method", "semantic", "intra", "inter"].map(str::to_owned).to_vec(),
            rows: gains,
            numeric: (1..4).collect(),
        }));
    }
    let series = |(style, run): (usize, &RunSummary)| BarSeries {
        name: run.name.clone(),
        style,
        bars: MEASURES.iter().map(|m| bar((m.count)(run))).collect(),
    };
    let chart = BarChart {
        title: "Accuracy on held-out prompts".into(),
        categories: MEASURES.map(|m| m.name.to_owned()).to_vec(),
        y: Axis::new("accuracy", "").within(0.0, 1.0),
        series: summary.runs.iter().enumerate().map(series).collect(),
        reference: Some(chance()),
    };
    blocks.push(Block::Charts(vec![chart.to_svg()]));
    blocks.push(Block::Table(Table {
        caption: "Counts behind the accuracies, with 95 % Wilson intervals".into(),
        header: ["run", "measure", "correct", "ties", "total", "interval"].map(str::to_owned).to_vec(),
        rows: summary.runs.iter().flat_map(count_rows).collect(),
        numeric: (2..6).collect(),
    }));
    blocks.push(Block::Paragraph(
        "These figures apply to this artificial language and these small models. The full text of the MAPL paper was \
         not available to the project, and no result here reproduces it."
            .into(),
    ));
    Section { heading: "Results".into(), blocks }
}

fn result_row(run: &RunSummary) -> Vec<String> {
    let mut row = vec![run.name.clone()];
    row.extend(MEASURES.iter().map(|m| accuracy((m.count)(run))));
    row.extend([run.steps.to_string(), decimal(run.seconds, 1)]);
    row
}

fn count_rows(run: &RunSummary) -> Vec<Vec<String>> {
    let row = |m: &Measure| {
        let count = (m.count)(run);
        let interval = count
            .interval()
            .map_or(NO_VALUE.to_owned(), |(low, high)| format!("{} to {}", decimal(low, 3), decimal(high, 3)));
        let [correct, ties, total] = [count.correct, count.ties, count.total].map(|n| n.to_string());
        vec![run.name.clone(), m.name.to_owned(), correct, ties, total, interval]
    };
    MEASURES.iter().map(row).collect()
}

/// One row for each method that has both a `-base` and a `-mapl` run.
fn gain_rows(runs: &[RunSummary]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for base in runs {
        let Some(method) = base.name.strip_suffix("-base") else { continue };
        let Some(mapl) = runs.iter().find(|r| r.name.strip_suffix("-mapl") == Some(method)) else { continue };
        let mut row = vec![method.to_owned()];
        for measure in &MEASURES {
            let (from, to) = ((measure.count)(base), (measure.count)(mapl));
            row.push(if from.total == 0 || to.total == 0 {
                NO_VALUE.to_owned()
            } else {
                let change = decimal(to.accuracy() - from.accuracy(), 3);
                if change.starts_with('-') { change } else { format!("+{change}") }
            });
        }
        rows.push(row);
    }
    rows
}

fn bar(count: Count) -> Bar {
    match count.interval() {
        Some(interval) => Bar { value: count.accuracy(), interval: Some(interval) },
        None => Bar { value: f64::NAN, interval: None },
    }
}

fn chance() -> ReferenceLine {
    ReferenceLine { value: 0.5, label: "chance".into() }
}

fn curves(summary: &QuickstartSummary) -> Section {
    let mut charts = Vec::new();
    // Runs of one method share a chart. A base run has one comparison per group, a MAPL run up to
    // five.
    let mut methods: Vec<&str> = Vec::new();
    for run in &summary.runs {
        let method = method_of(&run.name);
        if !run.loss.is_empty() && !methods.contains(&method) {
            methods.push(method);
        }
    }
    for method in methods {
        let of_method = summary.runs.iter().enumerate().filter(|(_, r)| method_of(&r.name) == method);
        let series = of_method.map(|(style, run)| Series {
            name: run.name.clone(),
            style,
            points: smoothed(
                &run.loss.iter().map(|p| (p.step as f64, p.value)).collect::<Vec<_>>(),
                run.loss.len().div_ceil(SMOOTHED_SHARE),
            ),
        });
        let chart = LineChart {
            title: format!("Training loss, {method}"),
            x: Axis::new("step", ""),
            y: Axis::new("loss", ""),
            series: series.collect(),
            reference: None,
        };
        charts.push(chart.to_svg());
    }
    if summary.runs.iter().any(|r| !r.accuracy.is_empty()) {
        for measure in &MEASURES {
            let series = |(style, run): (usize, &RunSummary)| Series {
                name: run.name.clone(),
                style,
                points: run.accuracy.iter().map(|p| (p.step as f64, (measure.point)(p))).collect(),
            };
            let chart = LineChart {
                title: format!("Held-out accuracy, {}", measure.name),
                x: Axis::new("step", ""),
                y: Axis::new("accuracy", "").within(0.0, 1.0),
                series: summary.runs.iter().enumerate().map(series).collect(),
                reference: Some(chance()),
            };
            charts.push(chart.to_svg());
        }
    }
    let text = if charts.is_empty() {
        "No curve was recorded."
    } else {
        "Loss curves are running means over up to a twentieth of the run. The loss of a MAPL run sums its base, intra \
         and inter terms, so it is higher than the loss of a base run; compare shapes, not levels."
    };
    Section {
        heading: "Curves".into(),
        blocks: vec![Block::Paragraph(text.into())]
            .into_iter()
            .chain((!charts.is_empty()).then_some(Block::Charts(charts)))
            .collect(),
    }
}

/// Method of a run name: `reward` of `reward-mapl`.
fn method_of(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

fn data(summary: &QuickstartSummary) -> Section {
    let mut blocks = Vec::new();
    for table in &summary.data {
        blocks.push(Block::Table(Table {
            caption: table.caption.clone(),
            header: table.header.clone(),
            rows: table.rows.clone(),
            numeric: (1..table.header.len()).collect(),
        }));
    }
    blocks.extend(summary.examples.iter().map(code));
    Section { heading: "Data".into(), blocks }
}

fn commands(commands: &[NamedText]) -> Section {
    let mut blocks: Vec<_> = commands.iter().map(code).collect();
    if blocks.is_empty() {
        blocks.push(Block::Paragraph("No command was recorded.".into()));
    }
    Section { heading: "Commands".into(), blocks }
}

fn code(text: &NamedText) -> Block {
    Block::Code { caption: text.caption.clone(), text: text.text.clone() }
}

fn environment(summary: &QuickstartSummary) -> Section {
    let rows = summary.environment.iter().map(|f| vec![f.name.clone(), f.value.clone()]).collect();
    let table = Table { rows, ..Default::default() };
    Section { heading: "Environment".into(), blocks: vec![Block::Table(table)] }
}
