//! Accuracies over seeds: mean and 95 % t interval of every setting, and its difference to the first
//! setting, seed by seed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::grid::{Grid, SEED};
use super::outcome::{Outcome, accuracy_names};
use crate::report::Table;
use crate::statistics::t_interval;

/// Mean over seeds. The interval is null for one seed, and for more seeds than the t table covers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mean {
    pub value: f64,
    /// 95 % t interval.
    pub interval: Option<[f64; 2]>,
    pub seeds: usize,
}

/// A setting: one value of every varied flag except the seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    pub values: Vec<String>,
    /// Mean FLOPs of a run, in units of 10^12.
    pub tflop: Option<f64>,
    pub accuracy: BTreeMap<String, Mean>,
    /// Mean difference of the accuracy to the first setting's accuracy with the same seed; empty for the
    /// first setting.
    pub difference: BTreeMap<String, Mean>,
}

/// Summary of a sweep with evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Varied flags except the seed.
    pub axes: Vec<String>,
    /// Names of the accuracies, in table order.
    pub names: Vec<String>,
    pub settings: Vec<Setting>,
}

/// Summary of finished points; `None` if no point was evaluated.
pub fn summary(grid: &Grid, outcomes: &[Outcome]) -> Option<Summary> {
    let names = accuracy_names(outcomes);
    if names.is_empty() {
        return None;
    }
    let seed = grid.axes.iter().position(|axis| axis == SEED);
    let kept = |values: &[String]| -> Vec<String> {
        values.iter().enumerate().filter(|(at, _)| Some(*at) != seed).map(|(_, value)| value.clone()).collect()
    };
    let mut groups: Vec<(Vec<String>, Vec<&Outcome>)> = Vec::new();
    for o in outcomes.iter().filter(|o| o.error.is_empty()) {
        let values = kept(&o.values);
        match groups.iter_mut().find(|(known, _)| *known == values) {
            Some((_, members)) => members.push(o),
            None => groups.push((values, vec![o])),
        }
    }
    // The baseline is the first setting of the file. If its runs failed, there are no differences.
    let first = kept(&grid.points[0].values);
    let baseline: Vec<&Outcome> =
        groups.iter().find(|(values, _)| *values == first).map(|(_, members)| members.clone()).unwrap_or_default();
    let same_seed = |a: &Outcome, b: &Outcome| seed.is_none_or(|at| a.values[at] == b.values[at]);
    let setting = |(values, members): &(Vec<String>, Vec<&Outcome>)| {
        let over = |of: &dyn Fn(&Outcome, &str) -> Option<f64>| {
            let one = |name: &String| {
                let found: Vec<f64> = members.iter().filter_map(|o| of(o, name)).collect();
                Some((name.clone(), Mean::of(&found)?))
            };
            names.iter().filter_map(one).collect()
        };
        let value = |o: &Outcome, name: &str| o.accuracy.get(name).copied();
        let difference = |o: &Outcome, name: &str| {
            let other = baseline.iter().find(|other| same_seed(o, other))?;
            Some(value(o, name)? - value(other, name)?)
        };
        let flops: Vec<f64> = members.iter().filter_map(|o| o.tflop).collect();
        Setting {
            values: values.clone(),
            tflop: Mean::of(&flops).map(|mean| mean.value),
            accuracy: over(&value),
            difference: if *values == first { BTreeMap::new() } else { over(&difference) },
        }
    };
    let settings = groups.iter().map(setting).collect();
    Some(Summary { axes: kept(&grid.axes), names, settings })
}

impl Mean {
    fn of(values: &[f64]) -> Option<Self> {
        let seeds = values.len();
        (seeds > 0).then(|| Self {
            value: values.iter().sum::<f64>() / seeds as f64,
            interval: t_interval(values),
            seeds,
        })
    }

    /// Formats the mean and half the width of its interval.
    fn text(&self, sign: bool) -> String {
        let value = if sign { format!("{:+.3}", self.value) } else { format!("{:.3}", self.value) };
        match self.interval {
            Some([low, high]) => format!("{value} ± {:.3}", (high - low) / 2.0),
            None => value,
        }
    }
}

impl Summary {
    /// Two tables: accuracies, and differences to the first setting.
    pub fn tables(&self) -> [Table; 2] {
        let first = self.settings.first().map(|setting| setting.values.join(" ")).unwrap_or_default();
        let header = |last: &[&str]| -> Vec<String> {
            let names = self.axes.iter().cloned().chain(["seeds".to_owned()]).chain(self.names.iter().cloned());
            names.chain(last.iter().map(|&name| name.to_owned())).collect()
        };
        let seeds = |means: &BTreeMap<String, Mean>| {
            means.values().map(|mean| mean.seeds).max().map_or("–".to_owned(), |n| n.to_string())
        };
        let row = |setting: &Setting, means: &BTreeMap<String, Mean>, sign: bool| -> Vec<String> {
            let cells = self.names.iter().map(|name| means.get(name).map_or("–".to_owned(), |mean| mean.text(sign)));
            setting.values.iter().cloned().chain([seeds(means)]).chain(cells).collect()
        };
        let accuracy = |setting: &Setting| {
            let mut cells = row(setting, &setting.accuracy, false);
            cells.push(setting.tflop.map_or("–".to_owned(), |tflop| format!("{tflop:.1}")));
            cells
        };
        let differing = self.settings.iter().filter(|setting| !setting.difference.is_empty());
        let numbers = |extra: usize| (self.axes.len()..self.axes.len() + 1 + self.names.len() + extra).collect();
        [
            Table {
                caption: "Held-out accuracy: mean over seeds ± half of the 95 % t interval".into(),
                header: header(&["TFLOP"]),
                rows: self.settings.iter().map(accuracy).collect(),
                numeric: numbers(1),
            },
            Table {
                caption: format!("Difference from {first}, seed by seed"),
                header: header(&[]),
                rows: differing.map(|setting| row(setting, &setting.difference, true)).collect(),
                numeric: numbers(0),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(values: [&str; 2], semantic: f64) -> Outcome {
        let accuracy =
            BTreeMap::from([("semantic".to_owned(), semantic), ("intra, functions held out".to_owned(), 0.5)]);
        Outcome { values: values.map(str::to_owned).to_vec(), accuracy, tflop: Some(2.0), ..Outcome::default() }
    }

    #[test]
    fn differences_are_taken_seed_by_seed() {
        let points = [["base", "1"], ["base", "2"], ["MAPL", "1"], ["MAPL", "2"]];
        let point = |values: [&str; 2]| super::super::grid::Point {
            name: String::new(),
            values: values.map(str::to_owned).to_vec(),
            words: vec![],
            prepare: vec![],
            measure: None,
            ifeval: None,
        };
        let grid = Grid {
            method: "reward".into(),
            axes: vec!["variant".into(), SEED.into()],
            points: points.map(point).to_vec(),
        };
        let values = [0.5, 0.7, 0.8, 0.6];
        let mut outcomes: Vec<Outcome> = points.iter().zip(values).map(|(point, x)| outcome(*point, x)).collect();
        let found = summary(&grid, &outcomes).unwrap();
        assert_eq!(found.names, ["semantic", "intra, functions held out"]);
        let mapl = &found.settings[1];
        assert_eq!(mapl.values, ["MAPL"]);
        assert!((mapl.accuracy["semantic"].value - 0.7).abs() < 1e-12);
        // The differences +0.3 and -0.1 have mean 0.1, standard error 0.2 and, with 1 degree of freedom, the
        // quantile 12.706.
        let difference = &mapl.difference["semantic"];
        let [low, high] = difference.interval.unwrap();
        assert!((difference.value - 0.1).abs() < 1e-12 && (high - low - 2.0 * 12.706 * 0.2).abs() < 1e-9);
        assert_eq!(found.tables()[1].rows[0][..3], ["MAPL", "2", "+0.100 ± 2.541"]);
        // A failed run of the first setting removes its seed from the differences, but not from the
        // accuracies.
        outcomes[0].error = "stopped".into();
        let found = summary(&grid, &outcomes).unwrap();
        assert_eq!(found.settings[1].difference["semantic"].seeds, 1);
        assert_eq!(found.settings[1].accuracy["semantic"].seeds, 2);
        outcomes.iter_mut().for_each(|o| o.accuracy.clear());
        assert_eq!(summary(&grid, &outcomes), None);
    }
}
