//! The preference group: one JSONL row with all prompts and responses of one original pair and the
//! comparisons between them. It is the only unit of data inside the program; every input format is
//! converted to it.
//!
//! A comparison is a signed sum of sequences: `loss = f(sum_k sign_k * score_k - margin)`. With two
//! terms it is Bradley-Terry, DPO or MAPL's intra-sample comparison (one response under two
//! prompts). With four terms it is MAPL's inter-sample comparison, the difference of two gaps
//! (arXiv 2505.12845).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Role of the speaker.
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// Further keys that chat templates read, such as `tool_calls` and `reasoning_content`.
    #[serde(flatten, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of text only.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// All text of the message: its content, and its further keys as JSON.
    pub fn whole_text(&self) -> Cow<'_, str> {
        if self.extra.is_empty() {
            return (&*self.content).into();
        }
        // The keys are strings and the values are JSON, so the conversion cannot fail.
        let extra = serde_json::to_string(&self.extra).unwrap_or_default();
        format!("{}\n{extra}", self.content).into()
    }
}

/// A prompt: plain text, or a conversation that the model folder's chat template renders.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// A conversation.
    Messages(Vec<Message>),
}

/// A response: plain text, or the assistant's message that answers a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// One text.
    Text(String),
    /// A message.
    Message(Message),
}

impl Response {
    /// Text of the response, without its role.
    pub fn text(&self) -> &str {
        match self {
            Response::Text(text) => text,
            Response::Message(message) => &message.content,
        }
    }

    /// All text of the response, with tool calls and reasoning ([`Message::whole_text`]).
    pub fn whole_text(&self) -> Cow<'_, str> {
        match self {
            Response::Text(text) => text.into(),
            Response::Message(message) => message.whole_text(),
        }
    }

    /// Whether there is nothing to score: no text, and no tool call or reasoning either.
    pub fn is_empty(&self) -> bool {
        match self {
            Response::Text(text) => text.is_empty(),
            Response::Message(message) => message.content.is_empty() && message.extra.is_empty(),
        }
    }
}

/// Kind of a comparison, by the prompts and responses that it compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The original pair: two responses under one prompt.
    Base,
    /// One response under two prompts (intra-sample).
    Intra,
    /// The gap of the pair under two prompts (inter-sample).
    Inter,
}

impl Kind {
    /// All kinds, in the order in which tables and metrics list them.
    pub const ALL: [Kind; 3] = [Kind::Base, Kind::Intra, Kind::Inter];

    /// Lower-case name, as in files and metric names.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Base => "base",
            Kind::Intra => "intra",
            Kind::Inter => "inter",
        }
    }

    /// Position in [`Kind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Rule that built an intra comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rule {
    /// The response meets every instruction of the better prompt and fails at least one of the other prompt.
    A,
    /// The response meets at least one instruction of the better prompt and none of the other prompt.
    B,
    /// One of the two prompts has no added instruction (response-conditioned Bradley-Terry,
    /// arXiv 2502.00814).
    #[serde(rename = "bare")]
    Bare,
}

/// Direction of an inter comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The added instructions must widen the gap between chosen and rejected.
    Up,
    /// The added instructions must narrow the gap.
    Down,
}

/// One signed sequence of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Index into [`PreferenceGroup::prompts`].
    pub prompt: usize,
    /// Index into [`PreferenceGroup::responses`].
    pub response: usize,
    /// +1 or -1.
    pub sign: i8,
}

fn one() -> f64 {
    1.0
}
fn is_one(x: &f64) -> bool {
    *x == 1.0
}
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// Unit of loss: 2 or 4 signed sequences (1 in a labelled row), a margin, a weight and a kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Base, intra or inter.
    pub kind: Kind,
    /// Signed terms.
    pub terms: Vec<Term>,
    /// Subtracted from the logit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub margin: f64,
    /// Factor on the loss.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f64,
    /// Construction rule that produced the comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Direction of an inter comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
}

/// An instruction of a prompt, with one flag per response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instruction {
    /// Index into [`PreferenceGroup::prompts`].
    pub prompt: usize,
    /// IFEval id, for example `length_constraints:number_words`.
    pub id: String,
    /// Arguments of the instruction.
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// Checker result for each response: true if it meets the instruction, `null` if it cannot be
    /// checked.
    pub satisfied: Vec<Option<bool>>,
}

/// All prompts and responses of one original pair and the comparisons between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferenceGroup {
    /// Identifier of the row.
    pub id: String,
    /// Prompts.
    pub prompts: Vec<Prompt>,
    /// Responses.
    pub responses: Vec<Response>,
    /// Comparisons between responses.
    pub comparisons: Vec<Comparison>,
    /// Instructions of the prompts, with the checker's results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instructions: Vec<Instruction>,
    /// Tool descriptions handed to the chat template (TRL's `tools`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<serde_json::Value>,
    /// Additional variables of the chat template (TRL's `chat_template_kwargs`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,
}

impl PreferenceGroup {
    /// A group without instructions, tools and variables of the chat template.
    pub fn new(id: String, prompts: Vec<Prompt>, responses: Vec<Response>, comparisons: Vec<Comparison>) -> Self {
        let (instructions, tools, chat_template_kwargs) = (Vec::new(), None, None);
        Self { id, prompts, responses, comparisons, instructions, tools, chat_template_kwargs }
    }

    /// A group with one base comparison: the form of every ordinary preference row.
    pub fn pair(id: String, prompt: Prompt, chosen: Response, rejected: Response, margin: f64) -> Self {
        let comparison = Comparison::pair(Kind::Base, (0, 0), (0, 1), margin);
        Self::new(id, vec![prompt], vec![chosen, rejected], vec![comparison])
    }

    /// Distinct (prompt, response) pairs used by the comparisons, in ascending order. A batch
    /// computes each pair once, however many comparisons use it.
    pub fn sequences(&self) -> Vec<(usize, usize)> {
        let mut pairs: Vec<_> =
            self.comparisons.iter().flat_map(|c| c.terms.iter().map(|t| (t.prompt, t.response))).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// Returns the label of a row with one response, which is true if the response is desirable; `None` for
    /// rows with comparisons.
    pub fn label(&self) -> Option<bool> {
        match &self.comparisons[..] {
            [comparison] if comparison.terms.len() == 1 => Some(comparison.terms[0].sign > 0),
            _ => None,
        }
    }

    /// Checks constraints that the types cannot express: indices, signs, number of terms, finite
    /// numbers. The message names the faulty part of the row; the caller adds file, line and id.
    pub fn validate(&self) -> Result<(), String> {
        if self.comparisons.is_empty() {
            return Err("\"comparisons\" is empty; a group needs at least one".into());
        }
        for (c, comparison) in self.comparisons.iter().enumerate() {
            comparison.validate(self).map_err(|why| format!("comparisons[{c}]: {why}"))?;
        }
        for (i, instruction) in self.instructions.iter().enumerate() {
            exists("prompt", instruction.prompt, self.prompts.len())
                .map_err(|why| format!("instructions[{i}]: {why}"))?;
            if instruction.satisfied.len() != self.responses.len() {
                return Err(format!(
                    "instructions[{i}]: \"satisfied\" has {} entries for {} responses",
                    instruction.satisfied.len(),
                    self.responses.len()
                ));
            }
        }
        Ok(())
    }
}

/// Checks that `index` is below `of`, the number of prompts or responses of a row.
fn exists(noun: &str, index: usize, of: usize) -> Result<(), String> {
    if index < of { Ok(()) } else { Err(format!("{noun} {index} does not exist; the row has {of} {noun}s")) }
}

impl Comparison {
    /// A comparison of two (prompt, response) pairs, with weight 1.
    pub fn pair(kind: Kind, better: (usize, usize), worse: (usize, usize), margin: f64) -> Self {
        let term = |(prompt, response), sign| Term { prompt, response, sign };
        Self { kind, terms: vec![term(better, 1), term(worse, -1)], margin, weight: 1.0, rule: None, direction: None }
    }

    fn validate(&self, group: &PreferenceGroup) -> Result<(), String> {
        if self.terms.len() != 2 && self.terms.len() != 4 {
            return Err(format!("{} terms; a comparison must have 2 or 4", self.terms.len()));
        }
        for (t, term) in self.terms.iter().enumerate() {
            exists("prompt", term.prompt, group.prompts.len())
                .and_then(|()| exists("response", term.response, group.responses.len()))
                .map_err(|why| format!("term {t}: {why}"))?;
            if term.sign != 1 && term.sign != -1 {
                return Err(format!("term {t}: sign {} is neither 1 nor -1", term.sign));
            }
            if self.terms[..t].iter().any(|u| (u.prompt, u.response) == (term.prompt, term.response)) {
                return Err(format!("term {t}: prompt {} with response {} appears twice", term.prompt, term.response));
            }
        }
        if self.terms.iter().map(|t| i32::from(t.sign)).sum::<i32>() != 0 {
            return Err("a comparison needs as many terms with sign 1 as with sign -1".into());
        }
        // Training computes in f32, so margin and weight must be finite there.
        if !(self.margin as f32).is_finite() {
            return Err(format!("margin {} must be finite in single precision (below about 3.4e38)", self.margin));
        }
        if !((self.weight as f32).is_finite() && self.weight >= 0.0) {
            return Err(format!(
                "weight {} must be finite in single precision (below about 3.4e38) and not negative",
                self.weight
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> PreferenceGroup {
        let text = |s: &str| Response::Text(s.into());
        PreferenceGroup::pair("1".into(), Prompt::Text("p".into()), text("a"), text("b"), 0.0)
    }

    #[test]
    fn a_pair_is_valid_and_round_trips() {
        let group = pair();
        group.validate().unwrap();
        let json = serde_json::to_string(&group).unwrap();
        assert_eq!(serde_json::from_str::<PreferenceGroup>(&json).unwrap(), group);
        assert_eq!(group.sequences(), [(0, 0), (0, 1)]);
    }

    #[test]
    fn each_defect_has_its_own_message() {
        let broken = |edit: fn(&mut PreferenceGroup)| {
            let mut group = pair();
            edit(&mut group);
            group.validate().unwrap_err()
        };
        assert!(broken(|g| g.comparisons.clear()).contains("at least one"));
        assert!(broken(|g| g.comparisons[0].terms[0].prompt = 9).contains("prompt 9 does not exist"));
        assert!(broken(|g| g.comparisons[0].terms[0].response = 9).contains("response 9 does not exist"));
        assert!(broken(|g| g.comparisons[0].terms[0].sign = 0).contains("sign 0"));
        assert!(broken(|g| g.comparisons[0].terms[1].sign = 1).contains("as many terms"));
        assert!(broken(|g| g.comparisons[0].terms[1].response = 0).contains("appears twice"));
        assert!(broken(|g| g.comparisons[0].terms.truncate(1)).contains("1 terms"));
        assert!(broken(|g| g.comparisons[0].margin = f64::NAN).contains("margin"));
        assert!(broken(|g| g.comparisons[0].weight = -1.0).contains("weight"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let mut value = serde_json::to_value(pair()).unwrap();
        value["extra"] = 1.into();
        assert!(serde_json::from_value::<PreferenceGroup>(value).is_err());
    }
}
