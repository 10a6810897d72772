//! Figures of a benchmark with 95 % intervals from a percentile bootstrap. Rows are drawn within each
//! category, so that no category is empty. Both rows of a ties prompt are drawn together.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::figures::{Figure, figures, graph_figures, is_best, shared_credit, style_shares, tie_margins};
use super::{Benchmark, Judged, Shape};
use crate::eval::statistics::{Estimate, Resampling, percentile_interval};
use crate::rng::Rng;
use crate::train::metrics::number;

/// A figure with its interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Name.
    pub name: String,
    /// Number of rows.
    pub count: usize,
    /// The estimate.
    pub value: Estimate,
}

/// Returns the category of a row. The bootstrap draws rows within each category.
fn stratum(shape: &Shape) -> String {
    match shape {
        Shape::Styles { domain } => domain.clone(),
        Shape::Best { pair, goal, category } => format!("{pair}/{goal}/{category}"),
        Shape::Chosen { subset } => subset.clone(),
        Shape::Ties { .. } => "ties".into(),
        Shape::Graph { kind, .. } => kind.clone(),
    }
}

/// Returns the indices of rows that are drawn together, grouped by category.
fn units(rows: &[Judged<'_>]) -> Vec<Vec<Vec<usize>>> {
    let mut strata: BTreeMap<String, Vec<Vec<usize>>> = BTreeMap::new();
    let mut prompts: HashMap<i64, usize> = HashMap::new();
    for (i, row) in rows.iter().enumerate() {
        let units = strata.entry(stratum(&row.item.shape)).or_default();
        if let Shape::Ties { prompt, .. } = row.item.shape {
            let at = *prompts.entry(prompt).or_insert(units.len());
            if at < units.len() {
                units[at].push(i);
                continue;
            }
        }
        units.push(vec![i]);
    }
    strata.into_values().collect()
}

/// Figures with intervals. A figure without variation over the resamples has no interval.
pub fn summarise(benchmark: Benchmark, rows: &[Judged<'_>], resampling: Resampling) -> Vec<Line> {
    let all: Vec<&Judged<'_>> = rows.iter().collect();
    let found = figures(benchmark, &all);
    let strata = units(rows);
    let mut rng = Rng::keyed(resampling.seed, &["benchmark", benchmark.name()]);
    let mut drawn: HashMap<String, Vec<f64>> = HashMap::new();
    for _ in 0..resampling.resamples {
        let mut sample: Vec<&Judged<'_>> = Vec::with_capacity(rows.len());
        for units in &strata {
            for _ in 0..units.len() {
                sample.extend(units[rng.below(units.len())].iter().map(|&i| &rows[i]));
            }
        }
        // A sample may lack a figure whose category is finer than the categories within which rows are drawn.
        for Figure { name, value, .. } in figures(benchmark, &sample) {
            drawn.entry(name).or_default().push(value);
        }
    }
    let line = |Figure { name, count, value }: Figure| {
        let interval = drawn.remove(&name).and_then(percentile_interval);
        Line { name, count, value: Estimate { value, interval } }
    };
    found.into_iter().map(line).collect()
}

/// The figures as a table.
pub fn table(benchmark: Benchmark, lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0).max(10);
    let rows = lines.first().map_or(0, |line| line.count);
    let mut out = vec![format!("{}: {rows} rows", benchmark.name())];
    out.push(format!("{:<width$} {:>8} {:^18} {:>6}", "", "value", "95 % interval", "rows"));
    for line in lines {
        let span = line.value.interval.map_or("-".into(), |[low, high]| format!("{low:.4} to {high:.4}"));
        out.push(format!("{:<width$} {:>8.4} {span:>18} {:>6}", line.name, line.value.value, line.count));
    }
    out.join("\n")
}

/// The figures as JSON, by name.
pub fn json(lines: &[Line]) -> Value {
    let one = |line: &Line| {
        let ends = |[low, high]: [f64; 2]| json!([number(low), number(high)]);
        json!({"value": number(line.value.value), "interval": line.value.interval.map(ends), "rows": line.count})
    };
    Value::Object(lines.iter().map(|line| (line.name.clone(), one(line))).collect())
}

/// Returns a row with its scores and its result, for an output file.
pub fn row_json(row: &Judged<'_>) -> Value {
    let scores: Vec<Value> = row.scores.iter().map(|score| number(*score)).collect();
    let mut out = Map::new();
    out.insert("id".into(), json!(row.item.row.group.id));
    let mut put = |name: &str, value: Value| out.insert(name.into(), value);
    match &row.item.shape {
        Shape::Styles { domain } => {
            put("domain", json!(domain));
            let [easy, normal, hard] = style_shares(&row.scores);
            put("easy", json!(easy));
            put("normal", json!(normal));
            put("hard", json!(hard));
        }
        Shape::Best { pair, goal, category } => {
            put("set", json!(if *pair { "pairwise" } else { "best-of-n" }));
            put("goal", json!(goal));
            put("category", json!(category));
            put("correct", json!(is_best(&row.scores)));
        }
        Shape::Chosen { subset } => {
            put("subset", json!(subset));
            put("credit", json!(shared_credit(&row.scores)));
        }
        Shape::Ties { correct, .. } => {
            let (margin, spread) = tie_margins(&row.scores, *correct);
            put("subset", json!("Ties"));
            put("num_correct", json!(correct));
            put("margin", number(margin));
            put("spread", number(spread));
        }
        Shape::Graph { kind, edges, .. } => {
            let [accuracy, tau] = graph_figures(&row.scores, edges);
            put("instruction_type", json!(kind));
            put("accuracy", json!(accuracy));
            put("tau", json!(tau));
        }
    }
    out.insert("scores".into(), Value::Array(scores));
    Value::Object(out)
}
