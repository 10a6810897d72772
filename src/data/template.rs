//! Chat templates: renders a model folder's Jinja source like transformers does, with minijinja.
//!
//! The output is equal byte for byte to the output of Jinja 2 under transformers' settings:
//!
//! - `trim_blocks` and `lstrip_blocks` are on, and CRLF is read as LF
//! - `generation` blocks, which only mark text in transformers, are read as blocks that are always true
//! - `tojson` is a custom implementation (`json`), and lists and dicts are printed as in Python (`repr`)
//! - Python's string, list and dict methods, `%` after a string literal, and `raise_exception` are
//!   available (`methods`, `percent`); filters and tests follow Jinja 2 (`python`)
//! - `strftime_now` reads the clock once per process, so every row of a run sees the same date
//!   (`date`)
//!
//! Templates of a loaded tokenizer are compiled and rendered in worker processes if those are
//! enabled ([`super::worker`]).
//!
//! Templates that do not parse or exceed the limits in `source`, conversations that a template itself
//! rejects, and renderings above the limits in `limits` are errors.

mod date;
mod json;
mod limits;
mod methods;
mod percent;
mod python;
mod repr;
mod source;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use regex::Regex;
use serde_json::Map;

use super::group::Message;
use super::tokenizer::{Remote, StoredFile};
use super::worker::Stage;
use super::worker::guard::guarded;
use crate::{Error, Result};
pub(crate) use date::{freeze_date, now};
pub use date::{frozen_date, utc};

/// File with a folder's template; it takes precedence over `chat_template` in
/// `tokenizer_config.json`.
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Template sources by name, in file order.
pub(crate) type NamedSources = Vec<(String, String)>;

/// A compiled chat template, or several with names (`default`, `tool_use`).
#[derive(Debug)]
pub struct ChatTemplate {
    engine: Engine,
    sources: NamedSources,
    /// Special tokens by their variable names: `bos_token`, `eos_token`, ...
    tokens: Vec<(String, String)>,
    /// Variables that the sources read and that only settings (`--chat-template-kwargs`) provide.
    settings: Vec<String>,
}

/// Place where a template is rendered.
#[derive(Debug)]
enum Engine {
    Here(Box<Environment<'static>>),
    Worker(Arc<Remote>),
}

/// Variables that every rendering has. A setting cannot replace the first three.
const STANDARD: [&str; 4] = ["messages", "tools", "add_generation_prompt", "documents"];

impl ChatTemplate {
    /// Compiles one source. `tokens` are passed to the template by name.
    pub fn compile(source: &str, tokens: Vec<(String, String)>) -> Result<Self, String> {
        Self::compile_named(vec![("default".to_owned(), source.to_owned())], tokens)
    }

    fn compile_named(sources: NamedSources, tokens: Vec<(String, String)>) -> Result<Self, String> {
        for (_, source) in &sources {
            source::check(source)?;
        }
        let compiled = guarded(Stage::Compile, || {
            let mut env = environment();
            let mut settings = BTreeSet::new();
            for (name, source) in &sources {
                env.add_template_owned(name.clone(), normalise(source))
                    .map_err(|e| format!("does not parse: {}", error_text(&e)))?;
                let read = env.get_template(name).map(|template| template.undeclared_variables(false));
                settings.extend(read.unwrap_or_default());
            }
            let provided = |name: &String| {
                STANDARD.contains(&name.as_str())
                    || name.ends_with("_token")
                    || env.globals().any(|(global, _)| global == name)
            };
            let settings: Vec<String> = settings.into_iter().filter(|name| !provided(name)).collect();
            Ok::<_, String>((env, settings))
        });
        let (env, settings) = compiled.map_err(|why| format!("does not parse: {why}"))??;
        Ok(Self { engine: Engine::Here(Box::new(env)), sources, tokens, settings })
    }

    /// Returns a template that worker processes have compiled and will render.
    pub(crate) fn in_worker(
        remote: Arc<Remote>,
        sources: NamedSources,
        tokens: Vec<(String, String)>,
        settings: Vec<String>,
    ) -> Self {
        Self { engine: Engine::Worker(remote), sources, tokens, settings }
    }

    /// Compiles the template of a model folder. `files` holds the names and bytes of `chat_template.jinja`
    /// (as `default`) and of the additional templates. Without files, `chat_template` in the given
    /// `tokenizer_config.json` is used, a string or a list of `{name, template}`. `None` if the folder has
    /// neither.
    pub(crate) fn load(
        dir: &Path,
        files: &[(String, &StoredFile)],
        config: &Map<String, serde_json::Value>,
        tokens: Vec<(String, String)>,
    ) -> Result<Option<Self>> {
        if !files.is_empty() {
            let mut sources = NamedSources::new();
            for (name, file) in files {
                let source = source_text(&file.path, &file.bytes)?;
                // Each source is compiled separately first, so that a message names the file.
                Self::compile(source, Vec::new()).map_err(|why| template_error(&file.path, &why))?;
                // An additional template named `default` takes precedence, as in transformers.
                sources.retain(|(known, _)| known != name);
                sources.push((name.clone(), source.to_owned()));
            }
            return Self::compile_named(sources, tokens).map(Some).map_err(|why| template_error(dir, &why));
        }
        let place = dir.join("tokenizer_config.json");
        let sources = match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(value) => named_sources(value).map_err(|why| Error::model(&place, why))?,
        };
        Self::compile_named(sources, tokens)
            .map(Some)
            .map_err(|why| Error::model(&place, format!("\"chat_template\" {why}")))
    }

    /// Compiles the bytes of a template file.
    pub(crate) fn from_bytes(file: &Path, bytes: &[u8], tokens: Vec<(String, String)>) -> Result<Self> {
        Self::compile(source_text(file, bytes)?, tokens).map_err(|why| template_error(file, &why))
    }

    /// Renders a conversation. `generation_prompt` adds the start of the assistant's turn; `kwargs`
    /// are additional variables of the template. With tools, a template named `tool_use` is
    /// preferred.
    pub fn render(
        &self,
        messages: &[Message],
        generation_prompt: bool,
        tools: Option<&serde_json::Value>,
        kwargs: Option<&Map<String, serde_json::Value>>,
    ) -> Result<String, String> {
        let env = match &self.engine {
            Engine::Here(env) => env,
            Engine::Worker(remote) => return remote.render(&(messages, generation_prompt, tools, kwargs)),
        };
        let has = |name: &str| self.sources.iter().any(|(known, _)| known == name);
        let name = if tools.is_some() && has("tool_use") { "tool_use" } else { "default" };
        let template = env.get_template(name).map_err(|_| {
            let names: Vec<&str> = self.sources.iter().map(|(name, _)| name.as_str()).collect();
            format!(
                "none of the chat templates ({}) is the default; add {TEMPLATE_FILE} to the folder, or pass \
                 --chat-template-path",
                names.join(", ")
            )
        })?;
        let mut variables: Vec<(String, Value)> =
            self.tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))).collect();
        for (name, value) in kwargs.into_iter().flatten() {
            variables.push((name.clone(), Value::from_serialize(value)));
        }
        let extra: Value = variables.into_iter().collect();
        // transformers always passes tools and documents, as None if there are none.
        let own = context! {
            messages => Value::from_serialize(messages),
            tools => tools.map_or(Value::from(()), Value::from_serialize),
            add_generation_prompt => generation_prompt,
        };
        let none = context! { documents => () };
        let mut text = limits::BoundedText::default();
        let variables = context! { ..own, ..extra, ..none };
        let outcome = guarded(Stage::Render, || template.render_captured_to(variables, &mut text).map(|_| ()));
        match outcome.map_err(|why| format!("the chat template failed: {why}"))? {
            Ok(()) => String::from_utf8(text.bytes).map_err(|e| format!("the chat template failed: {e}")),
            Err(_) if text.overflowed => {
                Err(format!("the chat template wrote more than {} MiB; does it loop?", limits::MAX_TEXT >> 20))
            }
            Err(e) => {
                let why = error_text(&e);
                let of_system = why.to_lowercase().contains("system") && messages.iter().any(|m| m.role == "system");
                // Templates such as Gemma's reject the system role.
                let advice = match of_system {
                    true => "; put the system text at the start of the first user turn, or remove it from the row",
                    false => "",
                };
                Err(format!("the chat template failed: {why}{advice}"))
            }
        }
    }

    /// Returns advice for an error message, which names the settings that the template reads and `given` lacks;
    /// empty if there are none.
    pub fn settings_advice(&self, given: Option<&Map<String, serde_json::Value>>) -> String {
        let open = |name: &&String| given.is_none_or(|given| !given.contains_key(*name));
        let open: Vec<&str> = self.settings.iter().filter(open).map(String::as_str).take(6).collect();
        match open.first() {
            None => String::new(),
            Some(first) => format!(
                "; the template also reads {}: set it for all rows, such as --chat-template-kwargs '{{\"{first}\": false}}'",
                open.join(", ")
            ),
        }
    }

    /// Settings that the sources read.
    pub(crate) fn settings(&self) -> &[String] {
        &self.settings
    }

    /// Sources by name, for hashing and printing.
    pub fn sources(&self) -> &[(String, String)] {
        &self.sources
    }

    /// True if the template prints the date, which is then part of the training text.
    pub fn uses_date(&self) -> bool {
        self.sources.iter().any(|(_, source)| source.contains("strftime_now"))
    }
}

/// Rejects settings (`--chat-template-kwargs`) that a rendering would not read.
pub fn check_settings(kwargs: &Map<String, serde_json::Value>) -> Result<(), String> {
    match STANDARD[..3].iter().find(|name| kwargs.contains_key(**name)) {
        None => Ok(()),
        Some(name) => Err(format!("\"{name}\" comes from the rows and cannot be set")),
    }
}

fn source_text<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| Error::model(file, "the chat template is not UTF-8 text"))
}

fn template_error(file: &Path, why: &str) -> Error {
    Error::model(file, format!("the chat template {why}"))
}

/// `chat_template` as a string or as a list of `{name, template}` with a `default`.
fn named_sources(value: &serde_json::Value) -> Result<NamedSources, String> {
    let list = match value {
        serde_json::Value::String(source) => return Ok(vec![("default".to_owned(), source.clone())]),
        serde_json::Value::Array(list) => list,
        _ => return Err("\"chat_template\" must be a string or a list of {name, template}".into()),
    };
    let mut sources = NamedSources::new();
    for (i, entry) in list.iter().enumerate() {
        let text = |key: &str| entry.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
        match (text("name"), text("template")) {
            (Some(name), Some(source)) => sources.push((name, source)),
            _ => return Err(format!("\"chat_template\"[{i}] must have the strings \"name\" and \"template\"")),
        }
    }
    if !sources.iter().any(|(name, _)| name == "default") {
        return Err("\"chat_template\" is a list without an entry named \"default\"".into());
    }
    Ok(sources)
}

/// Converts line ends to LF, `generation` tags to tags of an always-true block, and `%` after
/// strings to the filter `format`. White-space control marks (`-` and `+`) are kept.
fn normalise(source: &str) -> String {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*(generation|endgeneration)\s*([-+]?)%\}").expect("the pattern is constant")
    });
    let source = source.replace("\r\n", "\n");
    let tag = |found: &regex::Captures<'_>| {
        let word = if &found[2] == "generation" { "if true" } else { "endif" };
        format!("{{%{} {word} {}%}}", &found[1], &found[3])
    };
    percent::rewrite(&TAG.replace_all(&source, tag))
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    // The text goes to a tokenizer, never to a browser, so nothing is escaped.
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(|out, state, value| {
        limits::check_items(value)?;
        match repr::container_or_float(value) {
            Some(text) => out.write_str(&text).map_err(minijinja::Error::from),
            None => minijinja::escape_formatter(out, state, value),
        }
    });
    env.add_filter("tojson", |value: &Value, kwargs: Kwargs| json::tojson(value, kwargs));
    env.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| {
        date::strftime_now(&format).map_err(|why| minijinja::Error::new(ErrorKind::InvalidOperation, why))
    });
    python::apply(&mut env);
    limits::apply(&mut env);
    env
}

/// minijinja's message and line, without its debug dump.
fn error_text(error: &minijinja::Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("it did not finish within {} instructions; does it loop?", limits::MAX_INSTRUCTIONS);
    }
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> Vec<Message> {
        vec![Message::new("user", content)]
    }

    fn render(source: &str) -> Result<String, String> {
        ChatTemplate::compile(source, vec![("eos_token".into(), "<e>".into())])?.render(&user("hi"), true, None, None)
    }

    #[test]
    fn generation_tags_mark_nothing() {
        let source = "a \n {%- generation -%} {{ messages[0]['content'] }}{% endgeneration %}\nb{{ eos_token }}";
        assert_eq!(render(source).unwrap(), "ahib<e>");
    }

    #[test]
    fn a_template_can_refuse_and_the_message_is_its_own() {
        let why = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(why.contains("roles must alternate") && why.contains("line 1"), "{why}");
        assert!(render("{% if %}").unwrap_err().contains("does not parse"));
    }

    /// A template in the form of Gemma's: no system turn, alternating roles, and the role `model` for the assistant.
    #[test]
    fn a_template_without_a_system_turn_says_where_the_text_can_go() {
        let source = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
            {{ raise_exception('System role not supported') }}{% endif %}\
            {% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
            {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
            {% set role = 'model' if m['role'] == 'assistant' else m['role'] %}\
            {{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
            {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";
        let template = ChatTemplate::compile(source, vec![("bos_token".into(), "<bos>".into())]).unwrap();
        let turns = [Message::new("user", " Hi "), Message::new("assistant", "Hello")];
        let text = template.render(&turns, true, None, None).unwrap();
        assert_eq!(
            text,
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n\
             <start_of_turn>model\n"
        );
        let with_system = [Message::new("system", "Be brief."), Message::new("user", "Hi")];
        let why = template.render(&with_system, true, None, None).unwrap_err();
        assert!(why.contains("System role not supported") && why.contains("first user turn"), "{why}");
        let why = template.render(&turns[1..], true, None, None).unwrap_err();
        assert!(why.contains("must alternate") && !why.contains("first user turn"), "{why}");
    }

    #[test]
    fn carriage_returns_are_line_ends() {
        assert_eq!(render("{% if true %}\r\nx\r\n{% endif %}\r\ny").unwrap(), "x\ny");
    }

    #[test]
    fn the_jinja_file_takes_precedence_and_lists_need_a_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = |json: serde_json::Value| json.as_object().unwrap().clone();
        let string = config(serde_json::json!({"chat_template": "from config"}));
        let load = |config: &Map<String, serde_json::Value>| ChatTemplate::load(dir.path(), &[], config, Vec::new());
        let text = |template: ChatTemplate| template.render(&user("x"), false, None, None).unwrap();
        assert_eq!(text(load(&string).unwrap().unwrap()), "from config");
        assert!(load(&Map::new()).unwrap().is_none());
        let list = config(serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}));
        let named = load(&list).unwrap().unwrap();
        assert_eq!(named.render(&user("x"), false, Some(&serde_json::json!([])), None).unwrap(), "tools");
        assert_eq!(text(named), "plain");
        let bad = config(serde_json::json!({"chat_template": [{"name": "other", "template": "x"}]}));
        assert!(load(&bad).unwrap_err().to_string().contains("default"));
        let stored = |name: &str, text: &str| StoredFile { path: dir.path().join(name), bytes: text.into() };
        let [plain, tools] = [stored("chat_template.jinja", "from file"), stored("tool_use.jinja", "file with tools")];
        let load = |files: &[(String, &StoredFile)]| ChatTemplate::load(dir.path(), files, &string, Vec::new());
        let with_tools =
            |template: &ChatTemplate| template.render(&user("x"), false, Some(&serde_json::json!([1])), None);
        let both = load(&[("default".into(), &plain), ("tool_use".into(), &tools)]).unwrap().unwrap();
        assert_eq!(with_tools(&both).unwrap(), "file with tools");
        assert_eq!(text(both), "from file");
        // As in transformers, template files replace the template of the configuration.
        let only = load(&[("tool_use".into(), &tools)]).unwrap().unwrap();
        assert_eq!(with_tools(&only).unwrap(), "file with tools");
        let why = only.render(&user("x"), false, None, None).unwrap_err();
        assert!(why.contains("tool_use") && why.contains("chat_template.jinja"), "{why}");
    }

    #[test]
    fn advice_names_only_variables_that_settings_provide() {
        let source = "{% macro m(x) %}{{ x }}{% endmacro %}{% set y = 1 %}{% for z in messages %}{{ z }}{{ loop.index }}\
                      {% endfor %}{{ eos_token }}{{ namespace(a=1) }}{{ range(3) }}{% if thinking is defined %}a{% endif %}";
        let template = ChatTemplate::compile(source, Vec::new()).unwrap();
        let advice = template.settings_advice(None);
        assert!(advice.contains("reads thinking:") && advice.contains("{\"thinking\": false}"), "{advice}");
        let given = serde_json::json!({"thinking": true});
        assert_eq!(template.settings_advice(given.as_object()), "");
        assert!(check_settings(given.as_object().unwrap()).is_ok());
        assert!(check_settings(serde_json::json!({"tools": []}).as_object().unwrap()).is_err());
    }

    #[test]
    fn settings_of_the_row_reach_the_template() {
        let template = ChatTemplate::compile("{{ mode }} {{ flag }} {{ documents }}", Vec::new()).unwrap();
        let kwargs = serde_json::json!({"mode": "fast", "flag": true});
        let text = template.render(&user("x"), false, None, kwargs.as_object()).unwrap();
        assert_eq!(text, "fast True None");
    }
}
