//! `mapl eval` on rows with one response and a label: their mean scores by label, and how well the scores
//! separate the labels.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::evaluate::MeasureArgs;
use super::score::{ScoreJob, ScoredData};
use super::scored_reference::ScoredReference;
use crate::Result;
use crate::data::source::SourceRow;
use crate::error::refuse_given;
use crate::eval::labelled::{Labelled, LabelledSummary};
use crate::eval::statistics::Estimate;
use crate::eval::{data_hash, non_finite_warning, record, table};
use crate::files::write_text;
use crate::model::config::Head;
use crate::terminal::{complain, counted};
use crate::train::metrics::number;

impl MeasureArgs {
    /// Evaluates one model on rows with a label, writes the file, and returns the table or JSON to print.
    ///
    /// # Errors
    /// A data error at a row without a label; a usage error for flags about pairs.
    pub(super) fn measure_labelled(&self, model: &Path, rows: Vec<SourceRow>) -> Result<String> {
        let given = [
            ("--by-function", self.by_function),
            ("--prompt-blindness", self.prompt_blindness),
            ("--holdout-functions", !self.holdout_functions.is_empty()),
        ];
        refuse_given(&given, "on rows with one response and a label, which have no pairs")?;
        let labels: Vec<bool> = rows.iter().filter_map(|row| row.group.label()).collect();
        if let Some(row) = rows.iter().find(|row| row.group.label().is_none()) {
            let labelled = counted(labels.len(), "row");
            let why = format!("the row has no label, but the input has {labelled} with one; evaluate them separately");
            return Err(row.error(why));
        }
        let job = ScoreJob { args: &self.scoring, model, rows, blindness: None };
        let ScoredData { groups, scores, head, reference, score, .. } = self.scoring.device.run(job)?;
        let rho = groups.iter().zip(&scores).map(|(group, scores)| scores.rho(&score.loss, group)[0]);
        let found: Vec<Labelled> =
            labels.into_iter().zip(rho).map(|(desirable, score)| Labelled { desirable, score }).collect();
        let summary = LabelledSummary::of(&found, self.resampling());

        let mut map = Map::new();
        map.insert("schema".into(), json!(1));
        map.insert("model".into(), json!(model));
        ScoredReference::record(reference.as_ref(), "", &mut map);
        map.insert("head".into(), json!(if head == Head::Reward { "reward" } else { "logp" }));
        score.record(reference.as_ref(), &mut map);
        map.insert("bootstrap".into(), record::resampling_by_label_json(self.resampling()));
        map.insert("rows".into(), json!(found.len()));
        map.insert("data".into(), json!(data_hash(groups.iter().map(|group| &*group.group))));
        map.extend(record::labelled_json(&summary));
        let result = Value::Object(map);
        if let Some(output) = &self.output {
            let labels: Vec<bool> = found.iter().map(|row| row.desirable).collect();
            let scores: Vec<Value> = found.iter().map(|row| number(row.score)).collect();
            write_text(output, &record::with_observations(&result, &json!({"label": labels, "score": scores})))?;
        }
        if summary.non_finite > 0 {
            let model = model.display().to_string();
            complain(&format!("warning: {}", non_finite_warning(&model, summary.non_finite, Some(found.len()))));
        }
        if self.json {
            reference.iter().filter(|r| r.is_warning()).for_each(|r| complain(&score.line(r)));
            return Ok(format!("{result:#}"));
        }
        let mut text: Vec<String> = reference.iter().map(|r| score.line(r)).collect();
        text.push(labelled_table(&summary));
        Ok(text.join("\n"))
    }
}

fn labelled_table(summary: &LabelledSummary) -> String {
    let mut out =
        vec![format!("{:<12} {:>7} {:>10} {:>10} {:>10} {:>10}", "score", "count", "mean", "std", "min", "max")];
    for (name, moments) in
        [("desirable", summary.desirable), ("undesirable", summary.undesirable), ("all", summary.all)]
    {
        if let Some(m) = moments {
            let (mean, std, min, max) = (m.mean, m.std, m.min, m.max);
            out.push(format!("{name:<12} {:>7} {mean:>10.4} {std:>10.4} {min:>10.4} {max:>10.4}", m.count));
        }
    }
    let line = |name: &str, estimate: &Estimate, about: &str| {
        let interval = table::interval(estimate);
        format!("{name} {:.4}{interval}: {about}", estimate.value)
    };
    match (&summary.auc, &summary.difference) {
        (Some(auc), Some(difference)) => {
            let about = "probability that a desirable row scores above an undesirable one; ties count half";
            out.push(line("AUC", auc, about));
            out.push(line("difference of the means", difference, "desirable minus undesirable"));
        }
        _ => out.push("all rows have the same label, so the AUC and the difference of the means are undefined".into()),
    }
    if summary.non_finite > 0 {
        out.push(format!("score, NaN or infinite: {}", summary.non_finite));
    }
    out.join("\n")
}
