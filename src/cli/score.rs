//! `mapl score`: scores groups with a trained model. `mapl eval` shares the loading and scoring.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::device::{DeviceArgs, Job};
use super::fingerprint::groups_hash;
use super::inputs::Inputs;
use super::meeting::MeetingArgs;
use super::model_folder::{BaseArgs, adopt_pad, warn_of_bases};
use super::output::{check_ids, check_output, remark, warn};
use super::same_start::{facts, weights_on_ranks};
use super::scored_loss::{ScoredLoss, ScoredLossArgs};
use super::scored_reference::{ScoredReference, recorded_base, run_file};
use super::template::{TemplateKwargs, check_template_used, load_tokenizer};
use crate::backend::Backend;
use crate::data::group::Kind;
use crate::data::source::{ReadOptions, SourceRow, check_used, read_evaluated_files, read_scored_files};
use crate::data::tokenize::{OnTooLong, Purpose, TokenizeOptions, tokenize_rows_for};
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokenizer::pad::{last_tokens, read_place};
use crate::eval::measure::{Measure, Quantity};
use crate::eval::{blindness, non_finite_warning};
use crate::files::{input, write_text};
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::Model;
use crate::model::reward_heads::RewardNorm;
use crate::model::store::{self, Loaded};
use crate::model::weights::LoadAs;
use crate::ranks::{agreement, world};
use crate::terminal::{agreeing, complain, counted};
use crate::train::evaluate::{Evaluator, GroupScores, TOKEN_BUDGET};
use crate::{Error, Result};

/// Scoring settings of a model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Reference of a language model: a folder, or `none` for plain log-probs [default: the
    /// reference in the run.json of a DPO folder, else none]
    #[arg(long, alias = "ref-model-name-or-path")]
    pub ref_model: Option<PathBuf>,
    #[command(flatten)]
    pub base: BaseArgs,
    #[command(flatten)]
    pub score: ScoredLossArgs,
    /// Maximum sequence length in tokens; longer sequences are an error [default: the model's
    /// limit]
    #[arg(long)]
    pub max_length: Option<usize>,
    /// Chat template to use instead of the model folder's
    #[arg(long)]
    pub chat_template_path: Option<PathBuf>,
    /// Variables of the chat template for all rows, as a JSON object; those of a row take precedence
    /// [default: those in the run.json of the model folder, else none]
    #[arg(long, alias = "chat_template_kwargs", value_name = "JSON")]
    pub chat_template_kwargs: Option<TemplateKwargs>,
    /// Tokens per batch; smaller batches need less memory, and scores do not depend on it
    /// [default: 4096]
    #[arg(long)]
    pub batch_tokens: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub read: ReadOptions,
}

/// Arguments of `score`.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    /// Model folder: a language model or a reward model
    #[arg(long, alias = "model-name-or-path")]
    model: PathBuf,
    #[command(flatten)]
    scoring: ModelArgs,
    /// Files of groups or pairs, or of rows with a prompt, a response and a label
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// JSON lines file to write, one line per input row, in order
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    meeting: MeetingArgs,
}

impl ScoreArgs {
    /// Returns the arguments for the device and the ranks.
    pub(super) fn meeting(&self) -> (DeviceArgs, &MeetingArgs) {
        (self.scoring.device, &self.meeting)
    }

    /// Returns the arguments that list data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.input]
    }
}

/// Writes one JSON row per input group.
pub fn score(args: &ScoreArgs) -> Result<()> {
    let inputs = args.scoring.inputs(&[&args.model]).with("--model", [&args.model]).with("--input", &args.input);
    check_output("--output", &args.output, &inputs)?;
    args.scoring.check_base(&[&args.model])?;
    let rows = args.scoring.read_rows(&args.input, &[&args.model], true)?;
    let job = ScoreJob { args: &args.scoring, model: &args.model, rows, blindness: None };
    let ScoredData { groups, scores, head, reference, score, .. } = args.scoring.device.run(job)?;
    if let Some(reference) = &reference {
        let line = score.line(reference);
        if reference.is_warning() { complain(&line) } else { remark(&args.output, &line) }
    }
    let mut text = String::new();
    let (mut total, mut non_finite) = (0, 0);
    for (group, scores) in groups.iter().zip(&scores) {
        total += scores.policy.len();
        non_finite += not_finite(scores);
        let mut row = score_row(group, scores, head, reference.as_ref());
        if let Some(desirable) = group.group.label() {
            row["label"] = json!(desirable);
            row["score"] = crate::train::metrics::number(scores.rho(&score.loss, group)[0]);
            // A row with a label has one response, so there is no comparison.
            row["comparisons"] = json!([]);
        }
        text += &row.to_string();
        text.push('\n');
    }
    write_text(&args.output, &text)?;
    let mut summary = format!("{} in {}", counted(groups.len(), "row"), args.output.display());
    if non_finite > 0 {
        summary += &format!("; {non_finite} of {total} scores are NaN or infinite");
        let model = args.model.display().to_string();
        complain(&format!("warning: {}", non_finite_warning(&model, non_finite, Some(total))));
    }
    remark(&args.output, &summary);
    Ok(())
}

/// Returns the number of sequences for which the score by the model or by the reference is not finite.
fn not_finite(scores: &GroupScores) -> usize {
    (0..scores.policy.len()).filter(|&s| !scores.difference(s).is_finite()).count()
}

/// JSON row of a group: `{"id", "reference", "non_finite", "sequences": [...], "comparisons": [...]}`.
/// `reference` is the folder of the reference, or null if there is none; rows of a reward model lack this key.
/// `non_finite` is the number of sequences with a score that is NaN or infinite. A row with a label also has
/// `label` and `score`, the reward or implicit reward of its response, and no comparisons.
fn score_row(group: &TokenizedGroup, scores: &GroupScores, head: Head, scored_with: Option<&ScoredReference>) -> Value {
    let sequences: Vec<Value> = group
        .sequences
        .iter()
        .zip(&scores.policy)
        .enumerate()
        .map(|(i, (sequence, &score))| {
            let mut row = json!({
                "prompt": sequence.prompt, "response": sequence.response, "tokens": sequence.response_ids.len(),
            });
            match head {
                Head::LanguageModel => row["logp"] = crate::train::metrics::number(score),
                Head::Reward => row["reward"] = crate::train::metrics::number(score),
            }
            if let Some(reference) = &scores.reference {
                row["ref_logp"] = crate::train::metrics::number(reference[i]);
            }
            row
        })
        .collect();
    let comparisons: Vec<Value> = group
        .comparisons
        .iter()
        .zip(&scores.logits)
        .map(|(c, &logit)| {
            json!({"kind": c.kind.name(), "logit": crate::train::metrics::number(logit), "correct": logit > 0.0})
        })
        .collect();
    let mut row = json!({"id": group.group.id});
    if let Some(reference) = scored_with {
        row["reference"] = json!(reference.folder());
    }
    row["non_finite"] = json!(not_finite(scores));
    row["sequences"] = json!(sequences);
    row["comparisons"] = json!(comparisons);
    row
}

/// Loads a model, tokenises rows and scores them.
pub(super) struct ScoreJob<'a> {
    pub args: &'a ModelArgs,
    pub model: &'a Path,
    pub rows: Vec<SourceRow>,
    /// Seed of the prompt-blindness probes ([`blindness`]); `None` if these are not scored.
    pub blindness: Option<u64>,
}

/// Scored groups.
pub(super) struct ScoredData {
    pub groups: Vec<TokenizedGroup>,
    pub scores: Vec<GroupScores>,
    pub head: Head,
    /// Reference of a language model, or the reason why it has none; `None` for a reward model.
    pub reference: Option<ScoredReference>,
    /// Definition of the scores.
    pub score: ScoredLoss,
    /// Measures of the prompt-blindness probes; `remarks` are notes on these measures.
    pub probes: Vec<Measure>,
    pub remarks: Vec<String>,
}

impl Job for ScoreJob<'_> {
    type Output = ScoredData;

    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output> {
        let (args, folder) = (self.args, self.model);
        let mut config = ModelConfig::read_on(folder, args.base.base())?;
        let head = config.head;
        if head == Head::Reward && args.ref_model.is_some() {
            return Err(Error::Usage("--ref-model has no effect on a reward model".into()));
        }
        let scored_with = match head {
            Head::LanguageModel => Some(ScoredReference::of(folder, args.ref_model.as_deref(), args.base.base())?),
            Head::Reward => None,
        };
        let score_of = ScoredLoss::of(folder, head, &args.score)?;
        let score_of = match &scored_with {
            Some(reference) => score_of.settle(reference)?,
            None => score_of,
        };
        let loss = &score_of.loss;
        let (template, kwargs) = (args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref());
        let tokenizer = load_tokenizer(folder, args.base.base(), template, kwargs)?;
        adopt_pad(&mut config, &tokenizer);
        if let Some(length) = args.max_length.filter(|&n| n > config.max_positions) {
            return Err(Error::Usage(format!("--max-length {length} is above the model's {}", config.longest_text())));
        }
        let max_length = args.max_length.unwrap_or(config.max_positions);
        let options = TokenizeOptions {
            max_length: Some(max_length),
            on_too_long: OnTooLong::Error,
            ..TokenizeOptions::default()
        };
        let purpose = Purpose { reward: head == Head::Reward, keep_equal_ids: true };
        let (groups, report) = tokenize_rows_for(purpose, self.rows, &tokenizer, &options)?;
        warn(report.warnings());
        report.bare_text().iter().for_each(|note| complain(&format!("note: {note}")));
        check_ids(&groups, folder, config.vocab)?;
        loss.check_tails(&groups)?;
        let vocab = config.vocab;
        let notes =
            config.notes.iter().chain(tokenizer.notes()).cloned().chain(pad_note(&config, folder, &groups, &tokenizer));
        notes.for_each(|note| complain(&format!("note: {note}")));
        let Loaded { mut model, reward_bias, notes, ignored, .. } =
            store::load(backend, folder, config, LoadAs::Exact, 0)?;
        let norm = model.config.reward_norm;
        norm.iter().for_each(|norm| complain(&format!("note: {}", norm.line())));
        notes.iter().for_each(|note| complain(&format!("note: {note}")));
        if !ignored.is_empty() {
            complain(&format!("note: not used from {}: {}", folder.display(), ignored.join(", ")));
        }
        let recorded = recorded_base(folder);
        warn_of_bases(args.base.base(), [folder]);
        let base = args.base.base().or(recorded.as_deref());
        warn_of_bases(base, scored_with.iter().filter_map(ScoredReference::folder).filter(|other| *other != folder));
        let mut reference = reference_model(backend, &model.config, scored_with.as_ref(), base)?;
        if world::is_shared() {
            let mut facts = facts(backend);
            facts.push(("model".into(), weights_on_ranks(folder, base)?));
            if let Some(other) = scored_with.as_ref().and_then(ScoredReference::folder) {
                facts.push(("reference".into(), weights_on_ranks(other, base)?));
            }
            facts.push(("data".into(), groups_hash(&groups)));
            facts
                .push(("score".into(), format!("{} {:?} {:?}", loss.fingerprint(), args.batch_tokens, self.blindness)));
            agreement::compare(world::collective(), &facts)?;
        }
        let mut evaluator = Evaluator::new(backend, &model, reference.as_ref())?;
        evaluator.set_token_budget(args.batch_tokens.unwrap_or(TOKEN_BUDGET));
        let mut score = |groups: &[TokenizedGroup]| -> Result<Vec<GroupScores>> {
            check_ids(groups, folder, vocab)?;
            let mut scores = evaluator.run(backend, (&mut model, reference.as_mut()), loss, groups, |_| ())?.0;
            scores.iter_mut().for_each(|group| calibrate(group, reward_bias, norm));
            Ok(scores)
        };
        let scores = score(&groups)?;
        let (mut probes, mut remarks) = (Vec::new(), Vec::new());
        if let Some(seed) = self.blindness {
            let emptied = blindness::emptied(&groups, &tokenizer, max_length)?;
            let of_empty = score(&emptied.groups)?;
            probes.push(emptied.measure(Quantity::SemanticEmptyPrompt, Kind::Base, &of_empty));
            probes.push(emptied.measure(Quantity::IntraEmptyPrompt, Kind::Intra, &of_empty));
            let shuffled = blindness::shuffled(&groups, seed, max_length);
            let of_shuffled = score(&shuffled.groups)?;
            probes.push(shuffled.measure(Quantity::SemanticShuffledPrompt, Kind::Base, &of_shuffled));
            let tools = emptied.groups.iter().filter(|group| group.group.tools.is_some()).count();
            if tools > 0 {
                remarks.push(format!(
                    "empty prompts: {} {} tools, which an empty prompt leaves out",
                    counted(tools, "row"),
                    agreeing(tools, "has", "have")
                ));
            }
            if emptied.groups.is_empty() {
                remarks.push("empty prompts: no original pairs and no intra comparisons to score".into());
            }
            for (name, left_out) in [("empty", emptied.left_out), ("shuffled", shuffled.left_out)] {
                if left_out > 0 {
                    remarks.push(format!(
                        "{name} prompts: {} left out, too long for the model",
                        counted(left_out, "comparison")
                    ));
                }
            }
            if shuffled.groups.is_empty() {
                remarks.push("shuffled prompts: no original pairs with two different prompts to exchange".into());
            }
        }
        Ok(ScoredData { groups, scores, head, reference: scored_with, score: score_of, probes, remarks })
    }
}

/// Adds the bias of the score head to rewards and normalises them. The logit of a comparison is a difference of
/// rewards, so the shift cancels and only the division by the deviation remains.
fn calibrate(scores: &mut GroupScores, bias: f64, norm: Option<RewardNorm>) {
    let RewardNorm { mean, deviation } = norm.unwrap_or(RewardNorm { mean: 0.0, deviation: 1.0 });
    if bias != 0.0 || norm.is_some() {
        scores.policy.iter_mut().for_each(|reward| *reward = (*reward + bias - mean) / deviation);
        scores.logits.iter_mut().for_each(|logit| *logit /= deviation);
    }
}

impl ModelArgs {
    /// Rejects `--base-model` if neither a model nor its reference is an adapter.
    pub(super) fn check_base(&self, models: &[&Path]) -> Result<()> {
        let given = self.ref_model.as_deref();
        let recorded = |model: &&Path| ScoredReference::of(model, None, self.base.base()).ok();
        let recorded: Vec<ScoredReference> = match (given, self.base.base()) {
            (None, Some(_)) => models.iter().filter_map(recorded).collect(),
            _ => Vec::new(),
        };
        let references = recorded.iter().filter_map(ScoredReference::folder).chain(given);
        self.base.check(models.iter().copied().chain(references))
    }

    /// Reads the rows that all models are to score, and prints warnings about them. A row may be a response
    /// with a label or, with `single`, a prompt with one response.
    pub(super) fn read_rows(&self, files: &[PathBuf], models: &[&Path], single: bool) -> Result<Vec<SourceRow>> {
        // An unreadable folder is reported later, when its model is loaded.
        let reward = |folder: &&Path| {
            ModelConfig::read_on(folder, self.base.base()).is_ok_and(|config| config.head == Head::Reward)
        };
        let options = ReadOptions { whole_conversations: models.iter().all(reward), ..self.read.clone() };
        let (rows, reports) = match single {
            true => read_scored_files(files, &options)?,
            false => read_evaluated_files(files, &options)?,
        };
        check_used(&options, &reports)?;
        check_template_used(self.chat_template_path.as_deref(), self.chat_template_kwargs.as_ref(), &rows)?;
        reports.iter().for_each(|report| warn(report.warnings()));
        Ok(rows)
    }

    /// Files and folders that scoring of `models` reads, apart from the models and the data.
    pub(super) fn inputs(&self, models: &[&Path]) -> Inputs {
        let named = |path: &&PathBuf| path.as_os_str() != "none";
        let folders = models.iter().copied().chain(self.ref_model.as_deref());
        self.base
            .inputs(Inputs::default(), folders)
            .with("--ref-model", self.ref_model.iter().filter(named))
            .with("--chat-template-path", &self.chat_template_path)
    }
}

/// Returns a note on the position at which rewards are read, if the pad token is the last token of some sequence.
fn pad_note(config: &ModelConfig, folder: &Path, groups: &[TokenizedGroup], tokenizer: &Tokenizer) -> Option<String> {
    let pad = config.pad.filter(|pad| config.head == Head::Reward && last_tokens(groups).contains(pad))?;
    let place = read_place(pad, tokenizer);
    // Reward runs of earlier versions of this program read rewards at the last token, and did not record the
    // position.
    let run = run_file(folder).and_then(|file| input::read(&file, input::MAX_CONFIG).ok());
    let run: Value = run.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let earlier = run["method"] == "reward" && run.get("reward").is_none();
    let advice = if earlier {
        "; an earlier version trained this model at the last token itself: to read there, set \"pad_token_id\" in \
         config.json, and pad_token of the tokenizer, to a token that is not the last token of any sequence"
    } else {
        ""
    };
    Some(format!("{place}{advice}"))
}

fn reference_model<B: Backend>(
    backend: &B,
    policy: &ModelConfig,
    reference: Option<&ScoredReference>,
    base: Option<&Path>,
) -> Result<Option<Model<B>>> {
    let Some(folder) = reference.and_then(ScoredReference::folder) else { return Ok(None) };
    let config = ModelConfig::read_on(folder, base)?;
    if config.head != Head::LanguageModel || config.vocab != policy.vocab {
        let why = format!("cannot be the reference of a language model with {} token ids", policy.vocab);
        return Err(Error::model(folder, why));
    }
    Ok(Some(store::load(backend, folder, config, LoadAs::Exact, 0)?.model))
}
