//! Report page of a sweep: a table of all points, and plots of each metric over each numeric axis.

use super::grid::{Grid, SEED};
use super::outcome::{METRICS, Metric, Outcome};
use super::summary::summary;
use crate::report::page::Figure;
use crate::report::svg::Series;
use crate::report::{Axis, Block, LineChart, Page, Section, Table, significant};

/// Number of lines that can be told apart in a chart.
const MAX_LINES: usize = 8;

/// Plotted values: title, unit, value.
const PLOTS: [(&str, &str, Metric); 6] = [
    ("Tokens per second", "1/s", |o| o.tokens_per_s),
    ("Groups per second", "1/s", |o| o.groups_per_s),
    ("Step time", "ms", |o| o.step_ms),
    ("Share of the GEMM rate", "%", |o| o.share_of_product.map(|share| 100.0 * share)),
    ("Peak memory", "MiB", |o| o.taken_mib.or(o.peak_resident_mib)),
    ("Energy per group", "J", |o| o.joules_per_group),
];

/// Report page as HTML.
pub fn html(grid: &Grid, outcomes: &[Outcome]) -> String {
    let mut sections = Vec::new();
    if let Some(summary) = summary(grid, outcomes) {
        let tables = summary.tables().into_iter().filter(|table| !table.rows.is_empty());
        sections.push(Section { heading: "Accuracy".into(), blocks: tables.map(Block::Table).collect() });
    }
    sections.push(points(grid, outcomes));
    // The seed is not an axis to plot over.
    for axis in (0..grid.axes.len()).filter(|&axis| grid.axes[axis] != SEED) {
        sections.extend(scaling(grid, outcomes, axis));
    }
    let lead = format!("{} {} runs over {}.", outcomes.len(), grid.method, grid.axes.join(", "));
    Page { title: "Sweep".into(), lead, sections }.to_html()
}

fn points(grid: &Grid, outcomes: &[Outcome]) -> Section {
    // Columns without any value are left out.
    let columns: Vec<&(&str, Metric)> =
        METRICS.iter().filter(|(_, of)| outcomes.iter().any(|o| of(o).is_some())).collect();
    let header = ["point"].into_iter().chain(grid.axes.iter().map(String::as_str)).chain(columns.iter().map(|c| c.0));
    let row = |o: &Outcome| {
        let numbers = columns.iter().map(|(_, of)| of(o).map_or("–".into(), significant));
        [o.point.clone()].into_iter().chain(o.values.iter().cloned()).chain(numbers).collect()
    };
    let table = Table {
        caption: "All points".into(),
        header: header.map(str::to_owned).collect(),
        rows: outcomes.iter().map(row).collect(),
        numeric: (1 + grid.axes.len()..1 + grid.axes.len() + columns.len()).collect(),
    };
    let mut blocks = vec![Block::Table(table)];
    let failed = outcomes.iter().filter(|o| !o.error.is_empty());
    blocks.extend(failed.map(|o| Block::Warning(format!("{}: {}", o.point, o.error))));
    Section { heading: "Points".into(), blocks }
}

/// Plots over an axis with at least two numeric values; `None` for other axes.
fn scaling(grid: &Grid, outcomes: &[Outcome], axis: usize) -> Option<Section> {
    let place = |o: &Outcome| o.values[axis].parse::<f64>().ok().filter(|x| x.is_finite());
    let mut places: Vec<f64> = outcomes.iter().map(place).collect::<Option<_>>()?;
    places.sort_by(f64::total_cmp);
    places.dedup();
    if places.len() < 2 {
        return None;
    }
    let name = |o: &Outcome| {
        let others = grid.axes.iter().zip(&o.values).enumerate().filter(|(at, _)| *at != axis);
        others.map(|(_, (axis, value))| format!("{axis}={value}")).collect::<Vec<_>>().join(" ")
    };
    let mut names: Vec<String> = Vec::new();
    for o in outcomes {
        if !names.contains(&name(o)) {
            names.push(name(o));
        }
    }
    let left_out = names.len().saturating_sub(MAX_LINES);
    names.truncate(MAX_LINES);
    let figure = |(title, unit, of): &(&str, &str, Metric)| {
        let series: Vec<Series> = (names.iter().enumerate())
            .map(|(style, line)| {
                let on_line = outcomes.iter().filter(|o| name(o) == *line);
                let mut points: Vec<(f64, f64)> = on_line.filter_map(|o| Some((place(o)?, of(o)?))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Series { name: if line.is_empty() { "all".into() } else { line.clone() }, style, points }
            })
            .filter(|series| !series.points.is_empty())
            .collect();
        if series.is_empty() {
            return None;
        }
        let rows = series
            .iter()
            .flat_map(|s| s.points.iter().map(|(x, y)| vec![s.name.clone(), significant(*x), significant(*y)]));
        let table = Table {
            caption: (*title).into(),
            header: vec!["line".into(), grid.axes[axis].clone(), (*unit).into()],
            rows: rows.collect(),
            numeric: vec![1, 2],
        };
        let most = series.iter().flat_map(|s| &s.points).map(|p| p.1).fold(0.0, f64::max);
        // The axis starts at 0, so that twice the height is twice the value.
        let y = Axis::new(*title, *unit).within(0.0, if most > 0.0 { 1.1 * most } else { 1.0 });
        let x = Axis::new(grid.axes[axis].clone(), "");
        let chart = LineChart { title: (*title).into(), x, y, series, reference: None };
        Some(Figure { svg: chart.to_svg(), caption: String::new(), table })
    };
    let mut blocks = vec![Block::Figures(PLOTS.iter().filter_map(figure).collect())];
    if left_out > 0 {
        blocks.push(Block::Paragraph(format!(
            "{left_out} more combinations of the other flags are shown only in the table."
        )));
    }
    Some(Section { heading: format!("Over {}", grid.axes[axis]), blocks })
}
