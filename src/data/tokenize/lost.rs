//! Text of a row that is missing from its ids.
//!
//! - A message whose text is not in the rendered conversation. Chat templates trim texts, so white space at
//!   both ends does not count. Some templates delete text on purpose, such as the reasoning of earlier turns,
//!   so such messages are counted and are not an error.
//! - Reasoning of a message whose text, or a tool call whose name, is not in the rendered conversation.
//! - A tool whose name is not in the rendered conversation: the template ignores tools.
//! - A comparison with sides that differ in text but not in ids: its terms cancel for every model.

use serde::{Deserialize, Serialize};

use super::super::group::{Comparison, Message, PreferenceGroup};

/// Counts of texts of messages and tools, and of those that a rendered conversation lacks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Lost {
    /// Number of checked texts: contents, reasoning and tool calls of messages, and names of tools.
    pub messages: usize,
    pub missing: usize,
    /// The first missing text, with the role or tool that it belongs to.
    pub first: Option<String>,
}

impl Lost {
    /// Counts the texts of a message, and those that `rendered` lacks.
    pub(super) fn message(&mut self, message: &Message, rendered: &str) {
        self.text(&format!("the {} turn", message.role), &message.content, rendered);
        for (key, value) in &message.extra {
            let what = format!("\"{key}\" of the {} turn", message.role);
            if let Some(text) = value.as_str() {
                self.text(&what, text, rendered);
            }
            for call in value.as_array().into_iter().flatten() {
                if let Some(name) = call.get("function").unwrap_or(call).get("name").and_then(|name| name.as_str()) {
                    self.text(&what, name, rendered);
                }
            }
        }
    }

    /// Counts the names of a group's tools, and those that `rendered` lacks.
    pub(super) fn tools(&mut self, group: &PreferenceGroup, rendered: &str) {
        let tools = group.tools.iter().filter_map(|tools| tools.as_array()).flatten();
        for name in tools.filter_map(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str()) {
            self.text("the tool", name, rendered);
        }
    }

    fn text(&mut self, what: &str, text: &str, rendered: &str) {
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        self.messages += 1;
        if !rendered.contains(text) {
            self.missing += 1;
            self.first.get_or_insert_with(|| format!("{what} {:?}", start(text)));
        }
    }
}

/// First 40 characters of a text.
fn start(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// True if the positive and the negative terms of a comparison differ in text.
pub(super) fn texts_differ(group: &PreferenceGroup, comparison: &Comparison) -> bool {
    let texts = |positive: bool| {
        let terms = comparison.terms.iter().filter(move |term| (term.sign > 0) == positive);
        terms.map(|term| (&group.prompts[term.prompt], &group.responses[term.response]))
    };
    let mut negative: Vec<_> = texts(false).collect();
    texts(true).any(|term| match negative.iter().position(|other| *other == term) {
        Some(same) => {
            negative.swap_remove(same);
            false
        }
        None => true,
    })
}
