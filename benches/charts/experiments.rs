//! Results of `benches/experiments`: a dot chart and a Markdown table per recorded sweep.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use mapl::report::decimal;
use serde::Deserialize;

use super::dots::{Dot, Dots};
use super::record::read_json;

/// A recorded sweep.
pub struct Recorded {
    /// File in `benches/record/experiments`.
    pub file: &'static str,
    /// Name of the figure.
    pub figure: &'static str,
    pub title: &'static str,
    /// Columns of the table: measure, heading.
    columns: &'static [(&'static str, &'static str)],
}

/// The recorded sweeps.
pub const SWEEPS: [Recorded; 5] = [
    Recorded {
        file: "real-reward.json",
        figure: "experiments-real-reward",
        title: "Reward models from SmolLM2-135M, real pairs",
        columns: &REAL,
    },
    Recorded {
        file: "real-dpo.json",
        figure: "experiments-real-dpo",
        title: "DPO from SmolLM2-135M, real pairs",
        columns: &REAL,
    },
    Recorded {
        file: "language-reward.json",
        figure: "experiments-reward",
        title: "Reward models, artificial language",
        columns: &LANGUAGE,
    },
    Recorded {
        file: "language-weights.json",
        figure: "experiments-weights",
        title: "Weights and directions, artificial language",
        columns: &LANGUAGE,
    },
    Recorded {
        file: "language-dpo.json",
        figure: "experiments-dpo",
        title: "DPO, artificial language",
        columns: &LANGUAGE,
    },
];

/// Measures of the chart, with their colours.
const CHART: [(&str, usize); 4] = [("semantic", 0), ("intra", 2), ("inter", 5), ("sensitivity", 4)];
/// Columns of a sweep on real pairs.
const REAL: [(&str, &str); 9] = [
    ("semantic", "semantic"),
    ("semantic, chosen longer", "chosen longer"),
    ("semantic, rejected longer", "rejected longer"),
    ("length_only", "length alone"),
    ("intra", "intra"),
    ("inter", "inter"),
    ("sensitivity", "sensitivity"),
    ("sensitivity_flip", "flip"),
    ("conflict", "conflict"),
];
/// Columns of a sweep on the artificial language.
const LANGUAGE: [(&str, &str); 8] = [
    ("semantic", "semantic"),
    ("intra", "intra"),
    ("intra, functions held out", "intra, held out"),
    ("inter", "inter"),
    ("sensitivity", "sensitivity"),
    ("sensitivity, functions held out", "sensitivity, held out"),
    ("sensitivity_flip", "flip"),
    ("conflict", "conflict"),
];

/// Fields of a `mapl study sweep` file that the charts use.
#[derive(Deserialize)]
pub struct Sweep {
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    settings: Vec<Setting>,
}

#[derive(Deserialize)]
struct Setting {
    values: Vec<String>,
    tflop: Option<f64>,
    accuracy: BTreeMap<String, Mean>,
}

#[derive(Deserialize)]
struct Mean {
    value: f64,
    interval: Option<[f64; 2]>,
    seeds: usize,
}

impl Sweep {
    /// Reads a recorded sweep.
    pub fn read(records: &Path, file: &str) -> Result<Self, Box<dyn Error>> {
        let sweep: Self = read_json(&records.join("experiments").join(file))?;
        match sweep.summary.settings.is_empty() {
            true => Err(format!("{file}: the sweep has no evaluated points").into()),
            false => Ok(sweep),
        }
    }

    /// Chart as one `<svg>` element.
    pub fn to_svg(&self, title: &str) -> String {
        let row = |setting: &Setting| {
            let dot = |(name, _): &(&str, usize)| {
                setting.accuracy.get(*name).map(|mean| Dot { value: mean.value, interval: mean.interval })
            };
            (setting.values.join(" "), CHART.iter().map(dot).collect())
        };
        let chart = Dots {
            title: title.to_owned(),
            subtitle: match self.seeds() {
                1 => "held-out accuracy of one seed".to_owned(),
                seeds => format!("held-out accuracy, mean of {seeds} seeds, 95 % interval"),
            },
            axis: [0.0, 1.0, 0.2],
            measures: CHART.map(|(name, style)| (name.to_owned(), style)).to_vec(),
            rows: self.summary.settings.iter().map(row).collect(),
        };
        chart.to_svg()
    }

    /// Smallest number of seeds over all settings and measures.
    fn seeds(&self) -> usize {
        let all = self.summary.settings.iter().flat_map(|setting| setting.accuracy.values());
        all.map(|mean| mean.seeds).min().unwrap_or(0)
    }

    /// Returns a Markdown table of the means, each with the half-width of its interval.
    pub fn to_markdown(&self, recorded: &Recorded) -> String {
        let columns = recorded.columns;
        let headings: Vec<&str> = columns.iter().map(|(_, heading)| *heading).collect();
        let mut out = format!("| | {} | TFLOP |\n|---{}|---|\n", headings.join(" | "), "|---".repeat(columns.len()));
        for setting in &self.summary.settings {
            let cell = |(name, _): &(&str, &str)| match setting.accuracy.get(*name) {
                Some(Mean { value, interval: Some([low, high]), .. }) => {
                    format!("{} ± {}", decimal(*value, 2), decimal((high - low) / 2.0, 2))
                }
                Some(Mean { value, .. }) => decimal(*value, 2),
                None => "–".to_owned(),
            };
            let cells: Vec<String> = columns.iter().map(cell).collect();
            let tflop = setting.tflop.map_or("–".to_owned(), |tflop| decimal(tflop, 1));
            out += &format!("| {} | {} | {tflop} |\n", setting.values.join(" "), cells.join(" | "));
        }
        out
    }
}
