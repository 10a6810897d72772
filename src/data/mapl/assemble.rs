//! Adds instruction texts to a prompt: after it, before it, or in the system message; as sentences or as a
//! numbered list. The original text is kept byte for byte, so that prompts of a group share their prefix. A
//! prompt without the turn that receives the instructions is an error.

use std::ops::Range;

use super::DropReason;
use crate::data::group::{Message, Prompt};
use crate::data::options::{BuildOptions, Joiner, Placement, Turn};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Returns the prompt with the instructions added.
pub(super) fn with_instructions(
    prompt: &Prompt,
    texts: &[String],
    options: &BuildOptions,
) -> Result<Prompt, DropReason> {
    let block = match options.joiner {
        Joiner::Sentences => texts.join(" "),
        Joiner::List => texts.iter().enumerate().map(|(i, t)| format!("{}. {t}", i + 1)).collect::<Vec<_>>().join("\n"),
    };
    match prompt {
        Prompt::Text(text) => {
            let after = match options.placement {
                Placement::Suffix => true,
                Placement::Prefix => false,
                Placement::System => return Err(DropReason::NoSystemTurn),
            };
            let turn = text_turn(text, options.turn);
            let added = attach(&text[turn.clone()], &block, after, options.joiner);
            Ok(Prompt::Text(format!("{}{added}{}", &text[..turn.start], &text[turn.end..])))
        }
        Prompt::Messages(messages) => {
            let mut messages = messages.clone();
            let (index, after) = match options.placement {
                Placement::Suffix => (user_turn(&messages, options.turn).ok_or(DropReason::NoUserTurn)?, true),
                Placement::Prefix => (user_turn(&messages, options.turn).ok_or(DropReason::NoUserTurn)?, false),
                Placement::System => {
                    if messages.first().is_none_or(|m| m.role != "system") {
                        messages.insert(0, Message::new("system", ""));
                    }
                    (0, true)
                }
            };
            messages[index].content = attach(&messages[index].content, &block, after, options.joiner);
            Ok(Prompt::Messages(messages))
        }
    }
}

/// Text of the user turn that the instructions refer to: the turn that receives them, or the last
/// one if they go to the system message. Empty without a user turn.
pub(super) fn turn_text<'a>(prompt: &'a Prompt, options: &BuildOptions) -> &'a str {
    match prompt {
        Prompt::Text(text) => text[text_turn(text, options.turn)].trim(),
        Prompt::Messages(messages) => {
            user_turn(messages, options.turn).map_or("", |index| messages[index].content.as_str())
        }
    }
}

fn user_turn(messages: &[Message], turn: Turn) -> Option<usize> {
    let is_user = |m: &Message| m.role == "user";
    match turn {
        Turn::Last => messages.iter().rposition(is_user),
        Turn::First => messages.iter().position(is_user),
    }
}

/// Byte range of the user turn in plain text. In a Human/Assistant dialogue that ends with an empty
/// assistant turn it is a Human turn, otherwise the whole text.
fn text_turn(text: &str, turn: Turn) -> Range<usize> {
    let whole = 0..text.len();
    if !text.trim_end().ends_with(ASSISTANT) {
        return whole;
    }
    let start = match turn {
        Turn::Last => text.rfind(HUMAN),
        Turn::First => text.find(HUMAN),
    };
    let Some(start) = start.map(|s| s + HUMAN.len()) else { return whole };
    let end = text[start..].find(ASSISTANT).map_or(text.len(), |e| start + e);
    start..end
}

fn attach(content: &str, block: &str, after: bool, joiner: Joiner) -> String {
    if content.trim().is_empty() {
        return format!("{content}{block}");
    }
    let one_line = joiner == Joiner::Sentences && !content.trim().contains('\n');
    if after {
        let closed = content.trim_end().ends_with(['.', '!', '?', ':', '"', ')', '”', '。', '？', '！']);
        let gap = match content.chars().next_back() {
            Some(last) if last.is_whitespace() && (last == '\n' || (one_line && closed)) => "",
            _ if one_line && closed => " ",
            _ => "\n\n",
        };
        format!("{content}{gap}{block}")
    } else {
        // A dialogue turn starts with the space after "Human:"; the block goes after this space.
        let body = content.trim_start_matches(' ');
        let lead = &content[..content.len() - body.len()];
        format!("{lead}{block}{}{body}", if one_line { " " } else { "\n\n" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        vec!["Use at least 3 words.".into(), "Avoid the word oven.".into()]
    }

    fn text(prompt: &str, edit: impl Fn(&mut BuildOptions)) -> String {
        let mut options = BuildOptions::default();
        edit(&mut options);
        match with_instructions(&Prompt::Text(prompt.into()), &texts(), &options).unwrap() {
            Prompt::Text(text) => text,
            Prompt::Messages(_) => unreachable!(),
        }
    }

    #[test]
    fn suffix_prefix_and_list() {
        let both = "Use at least 3 words. Avoid the word oven.";
        assert_eq!(text("Name it.", |_| ()), format!("Name it. {both}"));
        assert_eq!(text("name it", |_| ()), format!("name it\n\n{both}"));
        assert_eq!(text("Name it.\nInput: x", |_| ()), format!("Name it.\nInput: x\n\n{both}"));
        assert_eq!(text("Name it.\n", |_| ()), format!("Name it.\n{both}"));
        assert_eq!(text("", |_| ()), both);
        assert_eq!(text("Name it.", |o| o.placement = Placement::Prefix), format!("{both} Name it."));
        let list = "1. Use at least 3 words.\n2. Avoid the word oven.";
        assert_eq!(text("Name it.", |o| o.joiner = Joiner::List), format!("Name it.\n\n{list}"));
    }

    #[test]
    fn dialogues_in_plain_text_keep_the_assistant_marker_last() {
        let both = "Use at least 3 words. Avoid the word oven.";
        let dialogue = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Name it.\n\nAssistant:";
        let last = format!("\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Name it. {both}\n\nAssistant:");
        assert_eq!(text(dialogue, |_| ()), last);
        let first = format!("\n\nHuman: Hi. {both}\n\nAssistant: Hello.\n\nHuman: Name it.\n\nAssistant:");
        assert_eq!(text(dialogue, |o| o.turn = Turn::First), first);
        let prefix = format!("\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: {both} Name it.\n\nAssistant:");
        assert_eq!(text(dialogue, |o| o.placement = Placement::Prefix), prefix);
    }

    #[test]
    fn conversations_take_instructions_in_the_chosen_turn_or_the_system_message() {
        let message = |role: &str, content: &str| Message::new(role, content);
        let talk = vec![message("user", "Hi."), message("assistant", "Hello."), message("user", "Name it.")];
        let add = |messages: &[Message], edit: fn(&mut BuildOptions)| {
            let mut options = BuildOptions::default();
            edit(&mut options);
            match with_instructions(&Prompt::Messages(messages.to_vec()), &texts(), &options) {
                Ok(Prompt::Messages(m)) => Ok(m),
                Ok(Prompt::Text(_)) => unreachable!(),
                Err(reason) => Err(reason),
            }
        };
        let both = "Use at least 3 words. Avoid the word oven.";
        assert_eq!(add(&talk, |_| ()).unwrap()[2].content, format!("Name it. {both}"));
        assert_eq!(add(&talk, |o| o.turn = Turn::First).unwrap()[0].content, format!("Hi. {both}"));
        let system = add(&talk, |o| o.placement = Placement::System).unwrap();
        assert_eq!((system.len(), &*system[0].role, &*system[0].content), (4, "system", both));
        let with_system = [vec![message("system", "Be kind.")], talk].concat();
        let system = add(&with_system, |o| o.placement = Placement::System).unwrap();
        assert_eq!((system.len(), &*system[0].content), (4, &*format!("Be kind. {both}")));
        assert_eq!(add(&with_system[..1], |_| ()).unwrap_err(), DropReason::NoUserTurn);
        let options = BuildOptions { placement: Placement::System, ..BuildOptions::default() };
        let plain = with_instructions(&Prompt::Text("x".into()), &texts(), &options);
        assert_eq!(plain.unwrap_err(), DropReason::NoSystemTurn);
    }
}
