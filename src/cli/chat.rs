//! `mapl chat`: a conversation with a language model in the terminal, or over pipes: one line in, one
//! answer out, token by token.
//!
//! ```text
//! line        the user's turn        /reset    a new conversation, with the same system text
//! /quit       ends, as does the end of the input
//! Ctrl-C      ends the answer; between answers, the program
//! ```

use std::cell::RefCell;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::device::Job;
use super::ends::{end_ids, first_stop, without_end};
use super::generate::GenerationArgs;
use super::output::warn;
use super::template::load_tokenizer;
use crate::backend::Backend;
use crate::data::group::{Message, PreferenceGroup, Prompt};
use crate::data::source::{PromptRow, SourceRow};
use crate::data::tokenize::encode_prompts;
use crate::data::tokenizer::Tokenizer;
use crate::generate::{Finish, Limits, Sampler, Session};
use crate::model::config::{Head, ModelConfig};
use crate::model::store::{self, Loaded};
use crate::model::weights::LoadAs;
use crate::terminal::{complain, on_stdout, plain};
use crate::train::signals::Signals;
use crate::{Error, Result};

/// Commands of a conversation, printed at the start and after an unknown command.
const COMMANDS: &str = "/reset starts a new conversation, /quit ends; to send a line that starts with a slash, put a \
                        space before it";

/// Arguments of `chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Model folder of a language model, or of an adapter
    #[arg(long, alias = "model-name-or-path")]
    model: PathBuf,
    /// System text at the start of every conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Seed of sampling [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    generation: GenerationArgs,
}

/// Runs `mapl chat`.
pub fn run(args: &ChatArgs) -> Result<()> {
    args.generation.base.check([args.model.as_path()])?;
    let sampler = args.generation.sampler(args.seed, 1)?;
    args.generation.device.run(ChatJob { args, sampler })
}

struct ChatJob<'a> {
    args: &'a ChatArgs,
    sampler: Sampler,
}

impl Job for ChatJob<'_> {
    type Output = ();

    fn run<B: Backend>(self, backend: &B) -> Result<()> {
        let Self { args, sampler } = self;
        let (folder, generation) = (&args.model, &args.generation);
        let config = ModelConfig::read_on(folder, generation.base.base())?;
        if config.head == Head::Reward {
            let why = "is a reward model, which gives scores and no text; name a language model";
            return Err(Error::model(folder, why));
        }
        let template = generation.chat_template_path.as_deref();
        let kwargs = generation.chat_template_kwargs.as_ref();
        let tokenizer = load_tokenizer(folder, generation.base.base(), template, kwargs)?;
        let notes = config.notes.iter().chain(tokenizer.notes()).cloned().chain(generation.unused_settings(&config));
        notes.for_each(|note| complain(&format!("note: {note}")));
        let limits = Limits {
            new_tokens: generation.new_tokens(folder, &config)?.0,
            rows: 1,
            ends: end_ids(&config, &tokenizer),
            seed: args.seed.unwrap_or(0),
        };
        let mut talk = Conversation::new(args, &tokenizer);
        // A missing template, or one that rejects the system text, is found before the model is loaded.
        talk.turns.push(Message::new("user", "x"));
        talk.ids(0)?;
        talk.turns.pop();
        let Loaded { mut model, ignored, notes, .. } = store::load(backend, folder, config, LoadAs::Exact, 0)?;
        notes.iter().for_each(|note| complain(&format!("note: {note}")));
        if !ignored.is_empty() {
            complain(&format!("note: not used from {}: {}", folder.display(), ignored.join(", ")));
        }
        let mut session = Session::new(backend, &mut model)?;
        talk.run(&mut session, &sampler, &limits)?;
        let (run, kept) = session.prompt_tokens();
        complain(&format!("{run} prompt tokens were computed, {kept} were in the KV cache"));
        Ok(())
    }
}

/// Turns of a conversation.
struct Conversation<'a> {
    args: &'a ChatArgs,
    tokenizer: &'a Tokenizer,
    turns: Vec<Message>,
    /// Whether the warning about text that the template leaves out was printed.
    warned: bool,
}

impl<'a> Conversation<'a> {
    fn new(args: &'a ChatArgs, tokenizer: &'a Tokenizer) -> Self {
        let turns = args.system.iter().map(|text| Message::new("system", text.as_str())).collect();
        Self { args, tokenizer, turns, warned: false }
    }

    /// Answers lines of standard input until it ends.
    fn run<B: Backend>(&mut self, session: &mut Session<'_, B>, sampler: &Sampler, limits: &Limits) -> Result<()> {
        let (input, signals) = (std::io::stdin(), Signals::listen()?);
        let talks = input.is_terminal();
        if talks {
            complain(COMMANDS);
        }
        let mut bytes = Vec::new();
        for line in 1.. {
            if talks {
                on_stdout(|out| write!(out, "> "))?;
            }
            bytes.clear();
            let read = input.lock().read_until(b'\n', &mut bytes).map_err(Error::io("read", Path::new("-")))?;
            if read == 0 {
                break;
            }
            let Ok(text) = std::str::from_utf8(&bytes) else {
                return Err(Error::data(Path::new("-"), line, None, "the line is not UTF-8"));
            };
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            match text.trim_end() {
                "" => continue,
                "/quit" => return Ok(()),
                "/reset" => {
                    *self = Self { warned: self.warned, ..Self::new(self.args, self.tokenizer) };
                    complain("a new conversation");
                    continue;
                }
                command if command.starts_with('/') => {
                    complain(&format!("{command}: not a command; {COMMANDS}"));
                    continue;
                }
                _ => {}
            }
            let text = text.strip_prefix(' ').filter(|rest| rest.starts_with('/')).unwrap_or(text);
            self.turns.push(Message::new("user", text));
            if let Err(e) = self.answer(session, (sampler, limits), &signals, line) {
                // In a terminal, a conversation that is too long does not end the program.
                if !matches!(e, Error::Usage(_)) || !talks {
                    return Err(e);
                }
                self.turns.pop();
                complain(&format!("{e}; /reset starts a new conversation"));
            }
        }
        if talks { on_stdout(|out| writeln!(out)) } else { Ok(()) }
    }

    /// Ids of the conversation up to the start of the assistant's turn. `line` is the line number of the
    /// input.
    fn ids(&mut self, line: usize) -> Result<Vec<u32>> {
        let prompt = Prompt::Messages(self.turns.clone());
        let group = PreferenceGroup::new("chat".into(), vec![prompt], Vec::new(), Vec::new());
        let row = SourceRow { group, file: Arc::from(Path::new("-")), line, scores: None };
        let encoded = encode_prompts(&[PromptRow { text: "{".to_owned(), row }], self.tokenizer, false)?;
        let warning = encoded.warning().filter(|_| line > 0 && !self.warned);
        self.warned |= warning.is_some();
        warn(warning);
        Ok(encoded.ids.into_iter().next().unwrap_or_default())
    }

    /// Generates, prints and keeps the answer to the last turn.
    fn answer<B: Backend>(
        &mut self,
        session: &mut Session<'_, B>,
        (sampler, limits): (&Sampler, &Limits),
        signals: &Signals,
        line: usize,
    ) -> Result<()> {
        let prompt = self.ids(line)?;
        let stops = &self.args.generation.stop;
        let decoded = |tokens: &[u32]| self.tokenizer.decode(without_end(tokens, &limits.ends));
        let printer = RefCell::new(Printer::default());
        let deferred = signals.defer(|_| ());
        let generated = session.answer(&prompt, sampler, limits, |tokens| {
            let text = decoded(tokens)?;
            let end = first_stop(&text, stops);
            printer.borrow_mut().print(&text[..end.unwrap_or_else(|| settled(&text, stops))])?;
            Ok(end.is_some() || signals.stop().is_some())
        });
        let stopped = signals.stop();
        drop(deferred);
        let generated = generated?;
        let mut text = decoded(&generated.tokens)?;
        if let Some(end) = first_stop(&text, stops) {
            text.truncate(end);
        }
        printer.borrow_mut().print(&text)?;
        on_stdout(|out| writeln!(out))?;
        match stopped {
            Some(signal) if signal != signal_hook::consts::SIGINT => Signals::end(signal),
            Some(_) => complain("(interrupted)"),
            None if generated.finish == Finish::Length => {
                complain("(the limit of new tokens; --max-new-tokens raises it)")
            }
            None => {}
        }
        self.turns.push(Message::new("assistant", text));
        Ok(())
    }
}

/// Number of bytes of a text that no further token changes. Excludes an incomplete character at the end, and
/// text that may become a stop text.
fn settled(text: &str, stops: &[String]) -> usize {
    let whole = text.trim_end_matches('\u{fffd}');
    let starts = |at: usize| stops.iter().any(|stop| stop.starts_with(&whole[at..]));
    whole.char_indices().map(|(at, _)| at).find(|at| starts(*at)).unwrap_or(whole.len())
}

/// Prints a text that grows.
#[derive(Default)]
struct Printer {
    printed: String,
}

impl Printer {
    /// Prints the part of `text` that follows the text printed so far.
    fn print(&mut self, text: &str) -> Result<()> {
        // Nothing is printed if the tokenizer has changed the white space of printed text. Printed text stays
        // as it is.
        let Some(new) = text.strip_prefix(self.printed.as_str()).filter(|new| !new.is_empty()) else { return Ok(()) };
        on_stdout(|out| write!(out, "{}", plain(new)))?;
        self.printed.push_str(new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::settled;

    #[test]
    fn a_character_or_stop_text_that_may_still_grow_is_held_back() {
        let stops = ["END".to_owned(), "\n\n".to_owned()];
        let shown = |text: &str| text[..settled(text, &stops)].to_owned();
        assert_eq!(shown("one two"), "one two");
        assert_eq!(shown("one E"), "one ");
        assert_eq!(shown("one EN"), "one ");
        assert_eq!(shown("one EX"), "one EX");
        assert_eq!(shown("one\n"), "one");
        assert_eq!(shown("caf\u{fffd}"), "caf");
        assert_eq!(settled("", &stops), 0);
    }
}
