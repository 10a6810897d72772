//! What a run prints before its first step: one aligned table of settings, data and model, and one decoded example of
//! every comparison kind with the trained tokens marked.

use std::fmt::Write as _;
use std::path::Path;

use clap::ValueEnum as _;

use super::train::Plan;
use crate::Result;
use crate::data::show::{ShowOptions, render_examples};
use crate::data::tokenize::TokenizeReport;
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::data::tree::token_counts;
use crate::model::config::ModelConfig;
use crate::train::console::color;

/// What is about to be trained, on what, and where.
pub(super) struct Startup<'a> {
    pub plan: &'a Plan<'a>,
    /// Folder of the start weights.
    pub start: &'a Path,
    pub config: &'a ModelConfig,
    pub device: &'static str,
    pub groups: &'a [TokenizedGroup],
    pub report: &'a TokenizeReport,
    pub tokenizer: &'a Tokenizer,
}

impl Startup<'_> {
    /// The table and the examples.
    pub fn text(&self) -> Result<String> {
        let mut out = String::new();
        for (name, value) in self.settings() {
            line(&mut out, name, &value);
        }
        out += &self.report.to_string();
        line(&mut out, "sharing", &self.sharing());
        line(&mut out, "loss", &self.plan.loss.formula());
        for note in self.tokenizer.notes() {
            line(&mut out, "note", note);
        }
        let examples = render_examples(self.groups, self.tokenizer, ShowOptions { color: color(), ids: false })?;
        let _ = write!(out, "\nexamples, trained tokens marked\n{}", examples.trim_end());
        Ok(out)
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let (plan, s, c) = (self.plan, &self.plan.settings, self.config);
        let precision = if self.device == "reference" { "f64, one core" } else { "f32" };
        let threads = match rayon::current_num_threads() {
            _ if self.device == "reference" => String::new(),
            1 => ", 1 thread".to_owned(),
            n => format!(", {n} threads"),
        };
        let seed = plan.args.optimiser.seed;
        let mut lines = vec![
            ("run", format!("{} on {} ({precision}{threads}), seed {seed}", plan.method.name(), self.device)),
            ("output", s.output_dir.display().to_string()),
            (
                "model",
                format!(
                    "{} with {} parameters: {} layers of width {}, {} heads ({} for keys), vocabulary {}; from {}",
                    c.architecture(),
                    c.parameters().unwrap_or(0),
                    c.layers,
                    c.hidden,
                    c.heads,
                    c.kv_heads,
                    c.vocab,
                    self.start.display()
                ),
            ),
        ];
        if let Some(reference) = plan.reference() {
            lines.push(("reference", format!("{}, frozen", reference.display())));
        }
        let batch = s.micro_batch * s.accumulation;
        let per_epoch = self.groups.len().div_ceil(batch);
        let length = match s.max_steps {
            Some(steps) => format!("{steps} updates"),
            None => format!("{} epochs", s.epochs),
        };
        let (micro, times) = (s.micro_batch, s.accumulation);
        lines.push((
            "batch",
            format!("{micro} groups x {times} = {batch} an update, {per_epoch} updates an epoch, {length} in all"),
        ));
        let schedule = s.scheduler.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        let clip = match plan.adamw.max_grad_norm {
            0.0 => "no clipping".to_owned(),
            norm => format!("gradient norm at most {norm}"),
        };
        lines.push((
            "optimiser",
            format!(
                "AdamW, learning rate {:e}, {schedule}, {} warm-up steps, weight decay {}, {clip}",
                s.learning_rate, s.warmup_steps, plan.adamw.weight_decay
            ),
        ));
        if plan.tokenize.max_length < plan.args.tokenize.max_length {
            let (now, given) = (plan.tokenize.max_length, plan.args.tokenize.max_length);
            lines.push(("max length", format!("{now} tokens, the model's limit, in place of {given}")));
        }
        lines
    }

    /// What prefix trees save over running every sequence on its own.
    fn sharing(&self) -> String {
        let (mut alone, mut shared) = (0, 0);
        for counts in self.groups.iter().map(token_counts) {
            alone += counts.per_sequence;
            shared += counts.tree;
        }
        let saved = if alone == 0 { 0.0 } else { 100.0 * (alone - shared) as f64 / alone as f64 };
        format!("{shared} tokens an epoch in prefix trees, {alone} without: {saved:.0} % saved")
    }
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<13} {value}");
}
