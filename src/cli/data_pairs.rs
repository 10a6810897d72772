//! `mapl data pairs`: preference rows of a policy's own responses. The responses to a prompt are judged by
//! a reward model, or by the checkers of the row's instructions, and the better ones are preferred.
//!
//! Errors are: judges that cannot judge the rows, scores that are not finite, and input that gives no pair.
//! Ties, gaps below `--min-gap`, prompts with one response and empty responses are left out and counted.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::data_export::{MESSAGE_TO_TEXT, side};
use super::device::DeviceArgs;
use super::inputs::Inputs;
use super::model_folder::BaseArgs;
use super::output::{check_output, remark};
use super::score::{ModelArgs, ScoreJob};
use super::scored_loss::ScoredLossArgs;
use super::template::{TemplateKwargs, check_template_used};
use crate::data::group::{Comparison, Kind};
use crate::data::source::{PromptOptions, ReadOptions, Samples, SourceRow, read_samples};
use crate::error::refuse_given;
use crate::files::write_text;
use crate::ifeval::check::verdicts;
use crate::ifeval::rows::instructions_of;
use crate::model::config::{Head, ModelConfig};
use crate::terminal::counted;
use crate::{Error, Result};

/// Judge of responses other than a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Judge {
    /// Share of the row's instructions that the response follows (strict verdicts of IFEval)
    Ifeval,
}

/// Pairs of the responses to a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Select {
    /// The best response with the worst one
    #[default]
    BestWorst,
    /// The best response with every worse one
    BestOfN,
    /// Every response with every worse one
    All,
}

/// Arguments of `data pairs`.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("judges").args(["reward_model", "judge"]).required(true)))]
pub struct PairsCommand {
    /// Files of rows with a prompt and a response, such as those of `mapl generate
    /// --num-return-sequences N`
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// JSON lines file to write, one row per pair: prompt, chosen, rejected and their scores
    #[arg(long)]
    output: PathBuf,
    /// Reward model that scores the responses
    #[arg(long, value_name = "FOLDER")]
    reward_model: Option<PathBuf>,
    /// Judge without a model
    #[arg(long, value_enum)]
    judge: Option<Judge>,
    /// Pairs of the responses to a prompt
    #[arg(long, value_enum, default_value_t)]
    select: Select,
    /// Smallest difference of the scores of a pair; equal scores never make a pair
    #[arg(long, value_name = "GAP", default_value_t = 0.0, value_parser = gap)]
    min_gap: f64,
    /// Write the difference of the scores as the pair's margin
    #[arg(long)]
    margin: bool,
    /// Make each prompt that is plain text the user's turn of a conversation, as `mapl generate
    /// --apply-chat-template` did, and the responses the assistant's
    #[arg(long)]
    apply_chat_template: bool,
    #[command(flatten)]
    read: PromptOptions,
    #[command(flatten)]
    base: BaseArgs,
    /// Maximum sequence length in tokens; longer sequences are an error [default: the reward model's
    /// limit]
    #[arg(long)]
    max_length: Option<usize>,
    /// Chat template to use instead of the reward model's
    #[arg(long)]
    chat_template_path: Option<PathBuf>,
    /// Variables of the chat template for all rows, as a JSON object; those of a row take precedence
    /// [default: those in the run.json of the reward model, else none]
    #[arg(long, value_name = "JSON")]
    chat_template_kwargs: Option<TemplateKwargs>,
    /// Tokens per batch; scores do not depend on it [default: 4096]
    #[arg(long)]
    batch_tokens: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn gap(text: &str) -> Result<f64, String> {
    let gap = text.parse().ok().filter(|gap: &f64| gap.is_finite() && *gap >= 0.0);
    gap.ok_or_else(|| "a number of at least 0 is needed".into())
}

impl PairsCommand {
    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.input]
    }

    /// Returns an error for flags about a reward model if the judge is not a model.
    fn refuse_model_flags(&self) -> Result<()> {
        let given = [
            ("--base-model", self.base.base_model.is_some()),
            ("--max-length", self.max_length.is_some()),
            ("--chat-template-path", self.chat_template_path.is_some()),
            ("--chat-template-kwargs", self.chat_template_kwargs.is_some()),
            ("--batch-tokens", self.batch_tokens.is_some()),
            ("--device", self.device.device != super::device::Device::Auto),
            ("--dtype", self.device.dtype.is_some()),
        ];
        refuse_given(&given, "without --reward-model")
    }
}

/// Counts of the responses, and of the pairs by outcome.
#[derive(Default)]
struct Counts {
    responses: usize,
    prompts: usize,
    pairs: usize,
    ties: usize,
    small: usize,
    single: usize,
    empty: usize,
    undecided: usize,
    /// Pairs whose id was in use already.
    renamed: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [pairs, responses, prompts] =
            [(self.pairs, "pair"), (self.responses, "response"), (self.prompts, "prompt")]
                .map(|(n, noun)| counted(n, noun));
        write!(f, "{pairs} of {responses} to {prompts}")?;
        let left_out = [
            (self.ties, "tie", ""),
            (self.small, "pair", " below --min-gap"),
            (self.single, "prompt", " with one response"),
            (self.undecided, "prompt", " with a response for which no instruction can be checked"),
            (self.empty, "empty response", ""),
        ];
        let left_out = left_out.iter().filter(|(count, ..)| *count > 0);
        let left_out: Vec<String> =
            left_out.map(|(count, noun, rest)| format!("{}{rest}", counted(*count, noun))).collect();
        match left_out.is_empty() {
            true => {}
            false => write!(f, "; left out: {}", left_out.join(", "))?,
        }
        match self.renamed {
            0 => Ok(()),
            n => {
                let ids = counted(n, "id");
                write!(f, "; {ids} got a number appended, because another pair has the same id")
            }
        }
    }
}

/// Judges responses and writes pairs.
///
/// # Errors
/// [`Error::Data`] for rows without a prompt or a response, for rows that the judge cannot judge, and if
/// no pair is left.
pub fn pairs(args: &PairsCommand) -> Result<()> {
    let inputs = Inputs::default()
        .with("--input", &args.input)
        .with("--reward-model", &args.reward_model)
        .with("--chat-template-path", &args.chat_template_path);
    check_output("--output", &args.output, &args.base.inputs(inputs, args.reward_model.as_deref()))?;
    args.base.check(args.reward_model.as_deref())?;
    if args.reward_model.is_none() {
        args.refuse_model_flags()?;
    }
    let read = read_samples(&args.input, &args.read, args.apply_chat_template)?;
    let mut counts =
        Counts { responses: read.rows, empty: read.empty, prompts: read.prompts.len(), ..Counts::default() };
    let (prompts, single): (Vec<Samples>, Vec<Samples>) =
        read.prompts.into_iter().partition(|samples| samples.row.group.responses.len() > 1);
    counts.single = single.len();
    let scores = match &args.reward_model {
        Some(model) if !prompts.is_empty() => rewards(args, model, &prompts)?.into_iter().map(Some).collect(),
        Some(_) => Vec::new(),
        None => prompts.iter().map(shares).collect::<Result<Vec<_>>>()?,
    };
    let (mut text, mut known) = (String::new(), HashSet::new());
    for (Samples { row, .. }, scores) in prompts.iter().zip(&scores) {
        let Some(scores) = scores else {
            counts.undecided += 1;
            continue;
        };
        let selected = select(scores, args.select, args.min_gap);
        counts.ties += selected.ties;
        counts.small += selected.small;
        for (number, &pair) in selected.pairs.iter().enumerate() {
            let number = (selected.pairs.len() > 1).then_some(number + 1);
            let mut pair = pair_row(args, row, scores, pair, number)?;
            let id = pair["id"].as_str().unwrap_or_default().to_owned();
            if known.contains(&id) {
                counts.renamed += 1;
                let new = (2..).map(|n| format!("{id}-{n}")).find(|new| !known.contains(new)).unwrap_or_default();
                pair["id"] = json!(new);
            }
            known.extend(pair["id"].as_str().map(str::to_owned));
            text += &Value::Object(pair).to_string();
            text.push('\n');
            counts.pairs += 1;
        }
    }
    if counts.pairs == 0 {
        let advice = match () {
            () if counts.small > 0 => "a smaller --min-gap keeps more",
            () if counts.ties > 0 => "no response is better than another",
            () if counts.single > 0 => {
                "give several responses to each prompt (`mapl generate --num-return-sequences N --temperature 1`)"
            }
            () => "no prompt has responses that can be compared",
        };
        return Err(Error::data(&args.input[0], 0, None, format!("{counts}; {advice}")));
    }
    write_text(&args.output, &text)?;
    remark(&args.output, &format!("{counts}, in {}", args.output.display()));
    Ok(())
}

/// Rewards of the responses to each prompt.
fn rewards(args: &PairsCommand, model: &PathBuf, prompts: &[Samples]) -> Result<Vec<Vec<f64>>> {
    if ModelConfig::read_on(model, args.base.base())?.head != Head::Reward {
        return Err(Error::model(model, "is a language model, which gives no rewards; name a reward model"));
    }
    // Each row compares its first response with all others, so that every response is scored.
    let rows: Vec<SourceRow> = prompts.iter().map(|samples| samples.row.clone()).map(compared).collect();
    check_template_used(args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref(), &rows)?;
    let scoring = ModelArgs {
        ref_model: None,
        base: args.base.clone(),
        score: ScoredLossArgs::default(),
        max_length: args.max_length,
        chat_template_path: args.chat_template_path.clone(),
        chat_template_kwargs: args.chat_template_kwargs.clone(),
        batch_tokens: args.batch_tokens,
        device: args.device,
        read: ReadOptions::default(),
    };
    let scored = args.device.run(ScoreJob { args: &scoring, model, rows, blindness: None })?;
    let mut all = Vec::with_capacity(prompts.len());
    for (samples, scores) in prompts.iter().zip(scored.scores) {
        // A row has one prompt here, so its sequences are in the order of the responses.
        if let Some(place) = scores.policy.iter().position(|score| !score.is_finite()) {
            return Err(Error::model(
                model,
                format!(
                    "the reward of response {place} to the prompt of row {} is {}, which cannot be ranked; the weights \
                     are damaged or the model diverged",
                    crate::terminal::shown(&samples.row.group.id),
                    scores.policy[place]
                ),
            ));
        }
        all.push(scores.policy);
    }
    Ok(all)
}

fn compared(mut row: SourceRow) -> SourceRow {
    let pairs = (1..row.group.responses.len()).map(|other| Comparison::pair(Kind::Base, (0, 0), (0, other), 0.0));
    row.group.comparisons = pairs.collect();
    row
}

/// For each response, the share of instructions that it follows, among those with a decided verdict. Returns
/// `None` if a response has no decided verdict.
fn shares(samples: &Samples) -> Result<Option<Vec<f64>>> {
    let (row, given) = (&samples.row, &samples.instructions);
    let fail = |why: String| row.error(why);
    let (Some(ids), Some(arguments)) = (given[0].as_array(), given[1].as_array()) else {
        return Err(fail(
            "\"instruction_id_list\" and \"kwargs\" are missing, or are not lists; --judge ifeval needs the rows of IFEval"
                .into(),
        ));
    };
    let instructions = instructions_of(ids, arguments).map_err(fail)?;
    let share = |response: &crate::data::group::Response| {
        let decided: Vec<bool> = verdicts(&instructions, response.text()).strict.into_iter().flatten().collect();
        let followed = decided.iter().filter(|&&followed| followed).count();
        (!decided.is_empty()).then(|| followed as f64 / decided.len() as f64)
    };
    Ok(row.group.responses.iter().map(share).collect())
}

/// Row of one pair; `number` makes the ids of several pairs of a prompt distinct.
fn pair_row(
    args: &PairsCommand,
    row: &SourceRow,
    scores: &[f64],
    (better, worse): (usize, usize),
    number: Option<usize>,
) -> Result<Map<String, Value>> {
    let group = &row.group;
    let prompt = &group.prompts[0];
    let id = number.map_or_else(|| group.id.clone(), |number| format!("{}-{number}", group.id));
    let mut pair = Map::new();
    pair.insert("id".into(), json!(id));
    pair.insert("prompt".into(), json!(prompt));
    for (key, response) in [("chosen", better), ("rejected", worse)] {
        let side = side(prompt, &group.responses[response]);
        pair.insert(key.into(), side.ok_or_else(|| row.error(MESSAGE_TO_TEXT))?);
    }
    pair.insert("score_chosen".into(), json!(scores[better]));
    pair.insert("score_rejected".into(), json!(scores[worse]));
    if args.margin {
        let margin = scores[better] - scores[worse];
        if !(margin as f32).is_finite() {
            return Err(
                row.error(format!("the gap {margin:e} is not finite in single precision, so it gives no margin"))
            );
        }
        pair.insert("margin".into(), json!(margin));
    }
    pair.extend(group.tools.clone().map(|tools| ("tools".into(), tools)));
    pair.extend(group.chat_template_kwargs.clone().map(|kwargs| ("chat_template_kwargs".into(), kwargs.into())));
    Ok(pair)
}

/// Selected pairs (better, worse), and the numbers of requested pairs that are left out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selected {
    pairs: Vec<(usize, usize)>,
    /// Pairs of equal scores.
    ties: usize,
    /// Pairs below the smallest gap.
    small: usize,
}

/// Selects pairs by score. Among equal scores, the first response counts as the best and as the worst.
fn select(scores: &[f64], select: Select, min_gap: f64) -> Selected {
    let first = |better: fn(f64, f64) -> bool| {
        (1..scores.len()).fold(0, |best, i| if better(scores[i], scores[best]) { i } else { best })
    };
    let (best, worst) = (first(|a, b| a > b), first(|a, b| a < b));
    let others = |i: usize| (0..scores.len()).filter(move |&j| j != i);
    let wanted: Vec<(usize, usize)> = match select {
        Select::BestWorst if best == worst => others(best).take(1).map(|other| (best, other)).collect(),
        Select::BestWorst => vec![(best, worst)],
        Select::BestOfN => others(best).map(|other| (best, other)).collect(),
        Select::All => {
            let pairs = (0..scores.len()).flat_map(|i| (i + 1..scores.len()).map(move |j| (i, j)));
            pairs.map(|(i, j)| if scores[i] >= scores[j] { (i, j) } else { (j, i) }).collect()
        }
    };
    let mut selected = Selected::default();
    for (better, worse) in wanted {
        let gap = scores[better] - scores[worse];
        match () {
            () if gap == 0.0 => selected.ties += 1,
            () if gap < min_gap => selected.small += 1,
            () => selected.pairs.push((better, worse)),
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_selected_by_score_and_gap() {
        let scores = [0.5, 2.0, -1.0, 2.0, 0.4];
        let of = |kind, gap| select(&scores, kind, gap);
        assert_eq!(of(Select::BestWorst, 0.0), Selected { pairs: vec![(1, 2)], ties: 0, small: 0 });
        assert_eq!(of(Select::BestWorst, 3.5), Selected { pairs: vec![], ties: 0, small: 1 });
        assert_eq!(of(Select::BestOfN, 0.0), Selected { pairs: vec![(1, 0), (1, 2), (1, 4)], ties: 1, small: 0 });
        assert_eq!(of(Select::BestOfN, 1.6), Selected { pairs: vec![(1, 2), (1, 4)], ties: 1, small: 1 });
        let all = of(Select::All, 0.2);
        assert_eq!((all.pairs.len(), all.ties, all.small), (8, 1, 1));
        assert!(all.pairs.iter().all(|&(better, worse)| scores[better] > scores[worse]));
        for kind in [Select::BestWorst, Select::BestOfN, Select::All] {
            assert_eq!(select(&[1.0, 1.0], kind, 0.0), Selected { pairs: vec![], ties: 1, small: 0 });
        }
    }
}
