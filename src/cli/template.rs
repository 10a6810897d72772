//! The argument `--chat-template-kwargs`, which sets variables of the chat template for all rows, and the
//! loading of a tokenizer with these variables. Without the flag, the variables are those that the `run.json`
//! of the model folder records, because the model was trained on text rendered with them.

use std::path::Path;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value};

use super::model_folder::read_tokenizer;
use super::scored_reference::run_file;
use crate::data::group::Prompt;
use crate::data::source::SourceRow;
use crate::data::template::check_settings;
use crate::data::tokenizer::Tokenizer;
use crate::files::input;
use crate::{Error, Result};

/// A JSON object with variables of the chat template.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct TemplateKwargs(pub Map<String, Value>);

impl FromStr for TemplateKwargs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "such as '{\"enable_thinking\": false}'";
        match serde_json::from_str(text) {
            Ok(Value::Object(kwargs)) => check_settings(&kwargs).map(|()| Self(kwargs)),
            Ok(_) => Err(format!("a JSON object is needed, {example}")),
            Err(e) => Err(format!("not valid JSON ({e}); a JSON object is needed, {example}")),
        }
    }
}

/// Loads the tokenizer of a folder, with the chat template in `template` and the variables `given`; `base`
/// overrides the base folder that an adapter names.
pub(super) fn load_tokenizer(
    folder: &Path,
    base: Option<&Path>,
    template: Option<&Path>,
    given: Option<&TemplateKwargs>,
) -> Result<Tokenizer> {
    let mut tokenizer = read_tokenizer(folder, base, template)?;
    let kwargs = match given {
        Some(TemplateKwargs(kwargs)) => kwargs.clone(),
        None => match recorded(folder) {
            Ok(kwargs) => kwargs,
            Err(note) => {
                tokenizer.add_note(note);
                Map::new()
            }
        },
    };
    if given.is_some() && tokenizer.template().is_none() && !kwargs.is_empty() {
        let why = "has no chat template, so --chat-template-kwargs has no effect; leave it out";
        return Err(Error::Usage(format!("{} {why}", folder.display())));
    }
    if given.is_none() && !kwargs.is_empty() {
        tokenizer.add_note(format!(
            "the chat template gets the variables {}, which the run of {} recorded; --chat-template-kwargs overrides them",
            Value::Object(kwargs.clone()),
            folder.display()
        ));
    }
    tokenizer.set_template_kwargs(kwargs);
    Ok(tokenizer)
}

/// Rejects a given template, or variables for it, if no row is a conversation. Templates are not applied to
/// plain text.
pub(super) fn check_template_used<'a>(
    template: Option<&Path>,
    given: Option<&TemplateKwargs>,
    rows: impl IntoIterator<Item = &'a SourceRow>,
) -> Result<()> {
    let flags = [("--chat-template-path", template.is_some()), ("--chat-template-kwargs", given.is_some())];
    let Some((flag, _)) = flags.iter().find(|(_, given)| *given) else { return Ok(()) };
    let is_conversation = |row: &SourceRow| row.group.prompts.iter().any(|p| matches!(p, Prompt::Messages(_)));
    if rows.into_iter().any(is_conversation) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{flag} has no effect: no row is a conversation; leave it out, or make turns of plain text with \
         --apply-chat-template"
    )))
}

/// Returns the chat-template variables recorded by the run that wrote a model folder, or a note if its
/// `run.json` cannot be read.
pub(super) fn recorded(folder: &Path) -> Result<Map<String, Value>, String> {
    let Some(file) = run_file(folder) else { return Ok(Map::new()) };
    let note = |why: String| {
        format!(
            "{} cannot be read ({why}), so the recorded variables of the chat template are unknown; set them with \
             --chat-template-kwargs",
            file.display()
        )
    };
    let bytes = input::read(&file, input::MAX_CONFIG).map_err(|e| note(e.to_string()))?;
    let run: Value = serde_json::from_slice(&bytes).map_err(|e| note(e.to_string()))?;
    if !run["method"].is_string() {
        return Err(note("it names no \"method\"".into()));
    }
    match run["config"].get("chat_template_kwargs") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(kwargs)) => Ok(kwargs.clone()),
        Some(_) => Err(note("\"chat_template_kwargs\" is not an object".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_without_the_conversation_are_settings() {
        let parse = |text: &str| text.parse::<TemplateKwargs>();
        assert_eq!(parse("{\"a\": false}").unwrap().0["a"], false);
        for (text, part) in [("[1]", "JSON object"), ("a=1", "not valid JSON"), ("{\"messages\": []}", "\"messages\"")]
        {
            assert!(parse(text).unwrap_err().contains(part), "{text}");
        }
    }
}
