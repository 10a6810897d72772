//! `mapl generate`: responses of a language model to prompts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::answers::{Answer, Answers};
use super::device::{Device, DeviceArgs, Job};
use super::ends::{end_ids, ends_text, first_stop, without_end};
use super::inputs::Inputs;
use super::meeting::MeetingArgs;
use super::model_folder::{BaseArgs, warn_of_bases};
use super::output::{check_output, remark, warn};
use super::same_start::{facts, weights_on_ranks};
use super::template::{TemplateKwargs, check_template_used, load_tokenizer};
use crate::backend::Backend;
use crate::data::group::Prompt as PromptText;
use crate::data::source::{PromptOptions, PromptRow, read_prompts};
use crate::data::tokenize::{encode_prompts, response_text};
use crate::files::write_text;
use crate::generate::run::Stop;
use crate::generate::shared::{self, Answered};
use crate::generate::{Engine, Generated, Limits, Prompt, Sampler, Sampling};
use crate::model::config::{Head, ModelConfig};
use crate::model::store::{self, Loaded};
use crate::model::weights::LoadAs;
use crate::ranks::{agreement, world};
use crate::terminal::complain;
use crate::{Error, Result};

/// Maximum number of new tokens if neither the flag nor the folder gives a number.
pub(super) const NEW_TOKENS: usize = 256;
/// Number of responses generated at a time by default.
pub(super) const BATCH_SIZE: usize = 32;

/// Keys that a row of the output has in addition to those of its input row.
pub(super) const ADDED: [&str; 3] = ["response", "tokens", "finish"];

/// Settings of `generation_config.json` that change the generated text: key, flag, and the value without effect;
/// `None` if any value has an effect, but only with `do_sample`.
const FOLDER_SETTINGS: [(&str, &str, Option<f64>); 5] = [
    ("temperature", "--temperature", None),
    ("top_k", "--top-k", None),
    ("top_p", "--top-p", None),
    ("min_p", "--min-p", None),
    ("repetition_penalty", "--repetition-penalty", Some(1.0)),
];

/// Arguments of `generate`.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// Model folder of a language model, or of an adapter
    #[arg(long, alias = "model-name-or-path")]
    model: PathBuf,
    /// Files of rows with a prompt, or - for standard input
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// JSON lines file to write, one line per row and sample, in order
    #[arg(long)]
    output: PathBuf,
    /// Seed of sampling [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Responses to each prompt
    #[arg(long, default_value_t = 1, value_name = "SAMPLES", value_parser = count)]
    num_return_sequences: usize,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    answering: RowsArgs,
    #[command(flatten)]
    read: PromptOptions,
    #[command(flatten)]
    meeting: MeetingArgs,
}

/// Arguments for the responses to rows.
#[derive(Args, Clone, Debug)]
pub(super) struct RowsArgs {
    /// Responses generated at a time; more need more memory, and no text depends on the number
    /// [default: 32]
    #[arg(long, value_name = "ROWS", value_parser = count)]
    batch_size: Option<usize>,
    /// Make each prompt that is plain text the user's turn of a conversation
    #[arg(long)]
    apply_chat_template: bool,
}

impl RowsArgs {
    /// Flags, and whether each is given.
    pub fn given(&self) -> [(&'static str, bool); 2] {
        [("--batch-size", self.batch_size.is_some()), ("--apply-chat-template", self.apply_chat_template)]
    }
}

/// Arguments of generation, for every command that generates responses.
#[derive(Args, Clone, Debug)]
pub(super) struct GenerationArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// Maximum number of new tokens of a response [default: that of generation_config.json, else 256]
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    pub max_new_tokens: Option<usize>,
    /// Sample at this temperature; 0 picks the most probable token, as without sampling flags [default: 1
    /// with another sampling flag]
    #[arg(long, value_parser = parse_temperature)]
    temperature: Option<f64>,
    /// Sample from this number of most probable tokens
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    top_k: Option<usize>,
    /// Sample from the most probable tokens that together have this probability
    #[arg(long, value_name = "SHARE", value_parser = parse_top_p)]
    top_p: Option<f64>,
    /// Sample from tokens with at least this share of the largest probability
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    min_p: Option<f64>,
    /// Divide positive logits of tokens of the text so far by this number, and multiply negative ones
    #[arg(long, value_name = "FACTOR", value_parser = parse_penalty)]
    repetition_penalty: Option<f64>,
    /// Texts that end a response; the response is the text before the first one
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Chat template to use instead of the model folder's
    #[arg(long)]
    pub chat_template_path: Option<PathBuf>,
    /// Variables of the chat template for all rows, as a JSON object; those of a row take precedence
    /// [default: those in the run.json of the model folder, else none]
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<TemplateKwargs>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Maximum value of a count, far above any use and far below an overflow.
const MOST: usize = 1 << 24;

pub(super) fn count(text: &str) -> Result<usize, String> {
    let in_range = text.parse().ok().filter(|n| (1..=MOST).contains(n));
    in_range.ok_or_else(|| format!("a whole number from 1 to {MOST} is needed"))
}

fn number(text: &str, accept: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && accept(*x)).ok_or_else(|| format!("{what} is needed"))
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

fn parse_top_p(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "a number above 0, at most 1")
}

fn parse_share(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

fn parse_penalty(text: &str) -> Result<f64, String> {
    number(text, |x| (1e-3..=1e3).contains(&x), "a number from 0.001 to 1000")
}

impl GenerateArgs {
    /// Device, and the arguments for how ranks connect.
    pub(super) fn meeting(&self) -> (DeviceArgs, &MeetingArgs) {
        (self.generation.device, &self.meeting)
    }

    /// Lists of data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.input]
    }
}

impl GenerationArgs {
    /// Flags, and whether each is given, for commands that may run without a model.
    pub fn given(&self) -> [(&'static str, bool); 12] {
        [
            ("--base-model", self.base.base_model.is_some()),
            ("--max-new-tokens", self.max_new_tokens.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--repetition-penalty", self.repetition_penalty.is_some()),
            ("--stop", !self.stop.is_empty()),
            ("--chat-template-path", self.chat_template_path.is_some()),
            ("--chat-template-kwargs", self.chat_template_kwargs.is_some()),
            ("--device", self.device.device != Device::Auto),
            ("--dtype", self.device.dtype.is_some()),
        ]
    }

    /// Adds the files that generation with these models reads to the inputs of a command.
    pub fn inputs<'a>(&self, inputs: Inputs, models: impl IntoIterator<Item = &'a Path>) -> Inputs {
        self.base.inputs(inputs, models).with("--chat-template-path", &self.chat_template_path)
    }

    /// Returns the sampler of `samples` responses to a prompt, or an error for flags that have no effect with
    /// the others.
    pub fn sampler(&self, seed: Option<u64>, samples: usize) -> Result<Sampler> {
        if let Some(empty) = self.stop.iter().find(|stop| stop.is_empty()) {
            return Err(Error::Usage(format!("--stop {empty:?}: an empty text would end every response at once")));
        }
        let given =
            [("--top-k", self.top_k.is_some()), ("--top-p", self.top_p.is_some()), ("--min-p", self.min_p.is_some())];
        let filter = given.iter().find(|(_, given)| *given).map(|(flag, _)| *flag);
        let draws = match (self.temperature, filter) {
            (Some(0.0), Some(flag)) => {
                return Err(Error::Usage(format!(
                    "{flag} has no effect with --temperature 0, which selects the most probable token; leave out one"
                )));
            }
            (temperature, filter) => temperature.map_or(filter.is_some(), |t| t > 0.0),
        };
        if !draws && samples > 1 {
            return Err(Error::Usage(
                "--num-return-sequences: without sampling all responses to a prompt are equal; add --temperature 1"
                    .into(),
            ));
        }
        if !draws && seed.is_some() {
            return Err(Error::Usage(
                "--seed has no effect without sampling; add --temperature 1, or leave it out".into(),
            ));
        }
        let sampling = draws.then(|| Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
        });
        Ok(Sampler { sampling, repetition_penalty: self.repetition_penalty.unwrap_or(1.0) })
    }

    /// Names the settings of the folder that transformers would use and this command does not.
    pub fn unused_settings(&self, config: &ModelConfig) -> Option<String> {
        let given = [
            self.temperature.is_some(),
            self.top_k.is_some(),
            self.top_p.is_some(),
            self.min_p.is_some(),
            self.repetition_penalty.is_some(),
        ];
        let samples = config.generation_setting("do_sample") == Some(&Value::Bool(true));
        let found =
            FOLDER_SETTINGS.iter().zip(given).filter(|(_, given)| !given).filter_map(|((key, flag, none), _)| {
                let value = config.generation_setting(key)?;
                // Without do_sample only the penalty has an effect.
                let acts = if *key == "repetition_penalty" { value.as_f64() != *none } else { samples };
                acts.then(|| format!("{flag} {value}"))
            });
        let found = found.collect::<Vec<_>>().join(" ");
        (!found.is_empty()).then(|| {
            format!(
                "generation_config.json sets {found}, which this command does not read; pass the flags that you want"
            )
        })
    }

    /// Maximum number of new tokens, and its source.
    pub fn new_tokens(&self, folder: &Path, config: &ModelConfig) -> Result<(usize, &'static str)> {
        if let Some(given) = self.max_new_tokens {
            return Ok((given, "--max-new-tokens"));
        }
        match config.generation_setting("max_new_tokens") {
            None => Ok((NEW_TOKENS, "the default")),
            Some(value) => match value.as_u64().filter(|n| *n >= 1) {
                Some(n) => Ok((n as usize, "generation_config.json")),
                None => Err(Error::model(
                    &folder.join("generation_config.json"),
                    format!("\"max_new_tokens\" is {value}; it must be a whole number of at least 1"),
                )),
            },
        }
    }
}

/// Writes one JSON row per input row and sample.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let inputs = Inputs::default().with("--model", [&args.model]).with("--input", &args.input);
    check_output("--output", &args.output, &args.generation.inputs(inputs, [args.model.as_path()]))?;
    args.generation.base.check([args.model.as_path()])?;
    let sampler = args.generation.sampler(args.seed, args.num_return_sequences)?;
    let prompts = read_prompts(&args.input, &args.read, &ADDED)?;
    warn(prompts.warnings);
    let job = GenerateJob {
        args: &args.generation,
        answering: &args.answering,
        model: &args.model,
        sampler,
        samples: args.num_return_sequences,
        seed: args.seed.unwrap_or(0),
        rows: &prompts.rows,
    };
    let answers = answer(job)?;
    write_text(&args.output, &response_lines(&prompts.rows, &answers.of_rows))?;
    remark(&args.output, &answers.summary(&args.output.display().to_string()));
    Ok(())
}

/// Rows of responses as JSON lines: the keys of the input row and [`ADDED`].
pub(super) fn response_lines(rows: &[PromptRow], answers: &[Vec<Answer>]) -> String {
    let mut text = String::new();
    for (PromptRow { text: row, .. }, answers) in rows.iter().zip(answers) {
        for Answer { response, generated } in answers {
            let comma = if row == "{" { "" } else { "," };
            let added = json!({
                "response": response, "tokens": generated.tokens, "finish": generated.finish.name(),
            });
            text += &format!("{row}{comma}{}\n", &added.to_string()[1..]);
        }
    }
    text
}

/// Runs a job on the device of its arguments.
pub(super) fn answer(job: GenerateJob<'_>) -> Result<Answers> {
    let started = Instant::now();
    let of_rows = job.args.device.run(job)?;
    Ok(Answers { of_rows, seconds: started.elapsed().as_secs_f64() })
}

/// Loads a model and answers prompts.
pub(super) struct GenerateJob<'a> {
    pub args: &'a GenerationArgs,
    pub answering: &'a RowsArgs,
    pub model: &'a Path,
    pub sampler: Sampler,
    /// Responses to each prompt.
    pub samples: usize,
    pub seed: u64,
    pub rows: &'a [PromptRow],
}

/// Reads the configuration of a language model's folder.
///
/// # Errors
/// [`Error::Model`] for a reward model, and for a folder that is not a model folder.
pub(super) fn language_model(folder: &Path, base: Option<&Path>) -> Result<ModelConfig> {
    let config = ModelConfig::read_on(folder, base)?;
    match config.head {
        Head::Reward => {
            Err(Error::model(folder, "is a reward model, which gives scores and no text; name a language model"))
        }
        Head::LanguageModel => Ok(config),
    }
}

impl Job for GenerateJob<'_> {
    type Output = Vec<Vec<Answer>>;

    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output> {
        let Self { args, answering, model: folder, sampler, samples, seed, rows } = self;
        let config = language_model(folder, args.base.base())?;
        warn_of_bases(args.base.base(), [folder]);
        let template = args.chat_template_path.as_deref();
        let tokenizer = load_tokenizer(folder, args.base.base(), template, args.chat_template_kwargs.as_ref())?;
        let texts = rows.iter().filter(|row| matches!(row.prompt(), PromptText::Text(_))).count();
        if answering.apply_chat_template && texts == 0 {
            return Err(Error::Usage(
                "--apply-chat-template has no effect: every prompt is a conversation already; leave it out".into(),
            ));
        }
        if !answering.apply_chat_template {
            let (path, kwargs) = (args.chat_template_path.as_deref(), args.chat_template_kwargs.as_ref());
            check_template_used(path, kwargs, rows.iter().map(|row| &row.row))?;
        }
        let encoded = encode_prompts(rows, &tokenizer, answering.apply_chat_template)?;
        warn(encoded.warning());
        let notes = config.notes.iter().chain(tokenizer.notes()).cloned().chain(args.unused_settings(&config));
        notes.for_each(|note| complain(&format!("note: {note}")));
        if encoded.plain > 0 && tokenizer.template().is_some() {
            complain(&format!(
                "note: {} of {} prompts are plain text, which the model continues; for a user's turn, pass \
                 --apply-chat-template",
                encoded.plain,
                rows.len()
            ));
        }
        let (new_tokens, from) = args.new_tokens(folder, &config)?;
        check_lengths(rows, &encoded.ids, folder, &config, new_tokens)?;
        let ends = end_ids(&config, &tokenizer);
        complain(&format!(
            "at most {new_tokens} new tokens ({from}); a text ends at {}",
            ends_text(&tokenizer, &ends, &args.stop)
        ));
        if world::is_shared() {
            let mut facts = facts(backend);
            facts.push(("model".into(), weights_on_ranks(folder, args.base.base())?));
            let prompts = blake3::hash(format!("{:?}", encoded.ids).as_bytes());
            facts.push(("prompts".into(), prompts.to_hex()[..16].to_owned()));
            facts.extend(sampler.named().map(|(name, value)| (format!("--{name}"), value)));
            facts.push(("--num-return-sequences".into(), samples.to_string()));
            facts.push(("--seed".into(), seed.to_string()));
            facts.push(("--max-new-tokens".into(), new_tokens.to_string()));
            facts.push(("--stop".into(), args.stop.join(" ")));
            facts.push(("end ids".into(), format!("{ends:?}")));
            agreement::compare(world::collective(), &facts)?;
        }
        let Loaded { mut model, ignored, notes, .. } = store::load(backend, folder, config, LoadAs::Exact, 0)?;
        notes.iter().for_each(|note| complain(&format!("note: {note}")));
        if !ignored.is_empty() {
            complain(&format!("note: not used from {}: {}", folder.display(), ignored.join(", ")));
        }
        let limits = Limits { new_tokens, rows: answering.batch_size.unwrap_or(BATCH_SIZE), ends, seed };
        let (prompts, of_row) = distinct(&encoded.ids, rows, samples);
        let plain: Vec<bool> = prompts.iter().map(|(_, plain)| *plain && !answering.apply_chat_template).collect();
        let prompts: Vec<Prompt> = prompts.into_iter().map(|(prompt, _)| prompt).collect();
        let text =
            |prompt: usize, tokens: &[u32]| response_text(&tokenizer, plain[prompt], &prompts[prompt].ids, tokens);
        let stops = |prompt: usize, tokens: &[u32]| Ok(first_stop(&text(prompt, tokens)?, &args.stop).is_some());
        let ends = limits.ends.clone();
        let mut engine = Engine::new(backend, &mut model, sampler, limits)?;
        let stops: Option<Stop<'_>> = (!args.stop.is_empty()).then_some(&stops);
        let Some(Answered { samples: generated, prompt_tokens: (run, shared) }) =
            shared::run(&mut engine, &prompts, stops, || false)?
        else {
            return Err(Error::Runtime("the generation was interrupted".into()));
        };
        if shared > 0 {
            complain(&format!(
                "{run} prompt tokens were computed, {shared} were shared with another prompt (prefix sharing)"
            ));
        }
        let answer = |prompt: usize, generated: Generated| -> Result<Answer> {
            let mut response = text(prompt, without_end(&generated.tokens, &ends))?;
            if let Some(at) = first_stop(&response, &args.stop) {
                response.truncate(at);
            }
            Ok(Answer { response, generated })
        };
        let answers = generated.into_iter().enumerate().map(|(prompt, samples)| {
            samples.into_iter().map(|sample| answer(prompt, sample)).collect::<Result<Vec<_>>>()
        });
        let answers: Vec<Vec<Answer>> = answers.collect::<Result<_>>()?;
        Ok(of_row.into_iter().map(|prompt| answers[prompt].clone()).collect())
    }
}

/// Returns the distinct prompts, each with whether it is plain text, and for every row the index of its
/// prompt. Equal prompts have equal responses, so each distinct prompt is answered once.
fn distinct(ids: &[Vec<u32>], rows: &[PromptRow], samples: usize) -> (Vec<(Prompt, bool)>, Vec<usize>) {
    let mut known: HashMap<(&[u32], bool), usize> = HashMap::new();
    let (mut prompts, mut of_row) = (Vec::new(), Vec::new());
    for (ids, row) in ids.iter().zip(rows) {
        let plain = matches!(row.prompt(), PromptText::Text(_));
        let at = *known.entry((ids, plain)).or_insert_with(|| {
            prompts.push((Prompt { ids: ids.clone(), samples }, plain));
            prompts.len() - 1
        });
        of_row.push(at);
    }
    (prompts, of_row)
}

/// Returns an error for prompts that the model cannot read. Warns of prompts that leave room for less than
/// `new_tokens`.
pub(super) fn check_lengths(
    rows: &[PromptRow],
    ids: &[Vec<u32>],
    folder: &Path,
    config: &ModelConfig,
    new_tokens: usize,
) -> Result<()> {
    let mut short = 0;
    for (PromptRow { row, .. }, ids) in rows.iter().zip(ids) {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab) {
            return Err(Error::model(
                folder,
                format!(
                    "the tokenizer gives row {} the token id {id}, but the model's vocabulary has {} entries; tokenizer \
                     and model of this folder do not belong together",
                    crate::terminal::shown(&row.group.id),
                    config.vocab
                ),
            ));
        }
        if ids.len() >= config.max_positions {
            return Err(row.error(format!(
                "the prompt has {} tokens, which leaves no room for a response within the model's {}; shorten it",
                ids.len(),
                config.longest_text()
            )));
        }
        short += usize::from(ids.len().saturating_add(new_tokens) > config.max_positions);
    }
    if short > 0 {
        warn([format!(
            "{short} of {} responses have room for less than {new_tokens} tokens: a prompt and its response can have \
             at most the model's {}",
            rows.len(),
            config.longest_text()
        )]);
    }
    Ok(())
}
