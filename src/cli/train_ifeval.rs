//! `--ifeval-file`: at every evaluation of `sft`, `dpo` and `kto`, the policy answers prompts of IFEval, and
//! the shares of followed instructions are logged as `eval_ifeval/...`. Generation is greedy and changes no
//! weight, so training is the same with and without it.
//!
//! If the tokenizer has a chat template, a prompt becomes the user's turn of a conversation; otherwise the
//! policy continues it as plain text. The figures equal those of `mapl ifeval --model` with
//! `--apply-chat-template` in the first case and without it in the second.

use std::cell::Cell;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::ends::{end_ids, without_end};
use super::generate::{BATCH_SIZE, NEW_TOKENS, check_lengths, count};
use super::ifeval::asked;
use super::output::warn;
use super::train::TrainSetup;
use crate::backend::Backend;
use crate::data::tokenize::{encode_prompts, response_text};
use crate::data::tokenizer::Tokenizer;
use crate::error::refuse_given;
use crate::generate::shared;
use crate::generate::{Engine, Finish, Limits, Prompt, Sampler, Sizes};
use crate::ifeval::rows::{Prompt as IfevalPrompt, judge, read_prompts};
use crate::ifeval::summary::Summary;
use crate::model::config::ModelConfig;
use crate::model::decoder::Model;
use crate::train::memory::PlannedGeneration;
use crate::train::metrics::number;
use crate::train::signals::Signals;
use crate::{Error, Result};

/// Options for measuring the policy's instruction following at evaluations.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Evaluation and checkpoints")]
pub struct TrainIfevalArgs {
    /// Files of IFEval rows: at every evaluation the policy answers their prompts greedily, and the
    /// shares of followed prompts and instructions are logged as eval_ifeval/...
    #[arg(long, num_args = 1..)]
    pub ifeval_file: Vec<PathBuf>,
    /// Number of prompts of --ifeval-file to answer, evenly spread over its rows [default: all]
    #[arg(long, value_name = "PROMPTS", value_parser = count)]
    pub ifeval_samples: Option<usize>,
    /// Maximum number of new tokens of an answer to --ifeval-file [default: 256]
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    pub ifeval_max_new_tokens: Option<usize>,
}

impl TrainIfevalArgs {
    /// Rejects options that have no effect.
    pub fn check(&self) -> Result<()> {
        let given = [
            ("--ifeval-samples", self.ifeval_samples.is_some()),
            ("--ifeval-max-new-tokens", self.ifeval_max_new_tokens.is_some()),
        ];
        if self.ifeval_file.is_empty() { refuse_given(&given, "without --ifeval-file") } else { Ok(()) }
    }
}

/// Prompts that the policy answers at every evaluation.
pub(super) struct PolicyPrompts {
    prompts: Vec<IfevalPrompt>,
    /// The same prompts as token ids.
    ids: Vec<Prompt>,
    /// Whether the policy continues the prompts as plain text, without a chat template.
    plain: bool,
    limits: Limits,
}

impl PolicyPrompts {
    /// Reads and encodes the prompts; `None` without `--ifeval-file`.
    pub fn read(setup: &TrainSetup<'_>, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let args = &setup.args.ifeval;
        if args.ifeval_file.is_empty() {
            return Ok(None);
        }
        let all = read_prompts(&args.ifeval_file)?;
        let total = all.len();
        let samples = args.ifeval_samples.unwrap_or(total);
        if samples > total {
            return Err(Error::Usage(format!("--ifeval-samples {samples}: --ifeval-file has {total} prompts")));
        }
        let chosen: Vec<bool> = spread(total, samples);
        let prompts: Vec<IfevalPrompt> =
            all.into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(prompt, _)| prompt).collect();
        let rows = prompts.iter().map(|prompt| asked(prompt, false)).collect::<Result<Vec<_>>>()?;
        let plain = tokenizer.template().is_none();
        let encoded = encode_prompts(&rows, tokenizer, !plain)?;
        warn(encoded.warning());
        let new_tokens = args.ifeval_max_new_tokens.unwrap_or(NEW_TOKENS);
        check_lengths(&rows, &encoded.ids, &setup.args.model, config, new_tokens)?;
        let form = if plain { "continued as text" } else { "as the user's turn" };
        setup.print(&format!(
            "{:<13} {samples} of {total} prompts, {form}, at most {new_tokens} new tokens each",
            "ifeval"
        ));
        let limits = Limits { new_tokens, rows: BATCH_SIZE, ends: end_ids(config, tokenizer), seed: 0 };
        let ids = encoded.ids.into_iter().map(|ids| Prompt { ids, samples: 1 }).collect();
        Ok(Some(Self { prompts, ids, plain, limits }))
    }

    /// Returns the sizes of the buffers for generation.
    pub fn planned(&self, config: &ModelConfig) -> PlannedGeneration {
        let Sizes { slots, tokens, rows } = Sizes::of(&self.limits, config, &self.ids);
        let longest = self.ids.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0) + self.limits.new_tokens;
        PlannedGeneration { slots, tokens, rows, longest: longest.min(config.max_positions) }
    }

    /// Generates responses to the prompts and returns the shares of followed instructions; `None` if a stop
    /// signal arrived.
    pub fn figures<B: Backend>(
        &self,
        backend: &B,
        policy: &mut Model<B>,
        tokenizer: &Tokenizer,
        signals: &Signals,
    ) -> Result<Option<Map<String, Value>>> {
        let interrupted = || Error::Runtime("a signal interrupted the generation".into());
        let stop = |_: usize, _: &[u32]| match signals.stop() {
            Some(_) => Err(interrupted()),
            None => Ok(false),
        };
        let mut engine = Engine::new(backend, policy, Sampler::greedy(), self.limits.clone())?;
        let Some(answered) = shared::run(&mut engine, &self.ids, Some(&stop), || signals.stop().is_some())? else {
            return Ok(None);
        };
        let generated = answered.samples;
        let (ended, tokens) = (Cell::new(0), Cell::new(0));
        let answers = generated.iter().flatten().zip(&self.ids).map(|(answer, prompt)| {
            ended.set(ended.get() + usize::from(answer.finish == Finish::Stop));
            tokens.set(tokens.get() + answer.tokens.len());
            response_text(tokenizer, self.plain, &prompt.ids, without_end(&answer.tokens, &self.limits.ends))
        });
        let answers: Vec<String> = answers.collect::<Result<_>>()?;
        let summary = Summary::of(&self.prompts, &judge(&self.prompts, &answers));
        let mut figures = Map::new();
        for line in summary.lines.iter().filter(|line| !line.name.contains(':')) {
            figures.insert(format!("ifeval/{}_strict", line.name), number(line.strict.share));
            figures.insert(format!("ifeval/{}_loose", line.name), number(line.loose.share));
        }
        let count = answers.len().max(1) as f64;
        figures.insert("ifeval/ended".into(), json!(ended.get() as f64 / count));
        figures.insert("ifeval/mean_tokens".into(), json!(tokens.get() as f64 / count));
        Ok(Some(figures))
    }
}

/// Returns a mask that selects `samples` of `total` rows, evenly spread.
fn spread(total: usize, samples: usize) -> Vec<bool> {
    let mut chosen = vec![false; total];
    (0..samples).for_each(|i| chosen[i * total / samples] = true);
    chosen
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_subset_has_its_size_and_is_spread() {
        for (total, samples) in [(1, 1), (7, 3), (541, 40), (10, 10)] {
            let chosen = spread(total, samples);
            assert_eq!((chosen.len(), chosen.iter().filter(|chosen| **chosen).count()), (total, samples));
        }
        assert_eq!(spread(6, 3), [true, false, true, false, true, false]);
    }
}
