//! Shares of followed prompts and instructions. A prompt is followed if all of its instructions
//! are. Instructions of one prompt share a response, so intervals of shares of instructions count
//! prompts as clusters (`doctor::interval`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::check::Verdicts;
use super::rows::{Judged, Prompt};
use crate::doctor::interval::{Share, share};

/// One figure, strict and loose.
pub struct Line {
    /// `prompt`, `instruction` or the id of a type.
    pub name: String,
    pub strict: Share,
    pub loose: Share,
}

/// Figures of one set of responses.
pub struct Summary {
    pub prompts: usize,
    pub instructions: usize,
    /// Number of responses of white space only.
    pub blank: usize,
    /// Number of instructions that give no verdict, by type.
    pub undecided: BTreeMap<String, usize>,
    /// One line for all prompts, one for all instructions, then one for each instruction type in the order of
    /// names.
    pub lines: Vec<Line>,
}

/// Outcomes of one figure: index of the prompt, and whether it was followed by the strict and by the loose
/// verdict.
pub(super) type Outcomes = Vec<(u32, bool, bool)>;

/// Outcomes by figure, in the order of [`Summary::lines`].
pub(super) fn outcomes(prompts: &[Prompt], verdicts: &[Verdicts]) -> Vec<(String, Outcomes)> {
    let (mut whole, mut single) = (Vec::new(), Vec::new());
    let mut types: BTreeMap<&str, Outcomes> = BTreeMap::new();
    for (at, (prompt, verdicts)) in (0..).zip(prompts.iter().zip(verdicts)) {
        let all = |list: &[Option<bool>]| list.iter().try_fold(true, |all, one| Some(all && (*one)?));
        if let (Some(strict), Some(loose)) = (all(&verdicts.strict), all(&verdicts.loose)) {
            whole.push((at, strict, loose));
        }
        let both = verdicts.strict.iter().zip(&verdicts.loose);
        for (instruction, (strict, loose)) in prompt.instructions.iter().zip(both) {
            if let (Some(strict), Some(loose)) = (*strict, *loose) {
                single.push((at, strict, loose));
                types.entry(&instruction.id).or_default().push((at, strict, loose));
            }
        }
    }
    let types = types.into_iter().map(|(id, found)| (id.to_owned(), found));
    [("prompt".to_owned(), whole), ("instruction".to_owned(), single)].into_iter().chain(types).collect()
}

/// Number of instructions that give no verdict, by type.
pub fn undecided(prompts: &[Prompt]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let all = prompts.iter().flat_map(|prompt| &prompt.instructions);
    for instruction in all.filter(|instruction| !instruction.is_decided()) {
        *found.entry(instruction.id.clone()).or_default() += 1;
    }
    found
}

/// Lines of a table for the types that give no verdict.
pub fn undecided_lines(undecided: &BTreeMap<String, usize>) -> impl Iterator<Item = String> {
    undecided.iter().map(|(id, count)| format!("{id:<46} not decided, instructions: {count}"))
}

impl Summary {
    /// Summarises verdicts on responses to the prompts.
    pub fn of(prompts: &[Prompt], judged: &Judged) -> Self {
        let lines = outcomes(prompts, &judged.verdicts).into_iter().filter_map(|(name, found)| {
            let of = |pick: fn(&(u32, bool, bool)) -> bool| {
                share(found.iter().map(|one| (one.0, f64::from(u8::from(pick(one))))))
            };
            Some(Line { name, strict: of(|one| one.1)?, loose: of(|one| one.2)? })
        });
        Self {
            prompts: prompts.len(),
            instructions: prompts.iter().map(|prompt| prompt.instructions.len()).sum(),
            blank: judged.blank,
            undecided: undecided(prompts),
            lines: lines.collect(),
        }
    }

    /// The figures as JSON.
    pub fn json(&self) -> Value {
        let one = |share: &Share| json!({"accuracy": share.share, "interval": [share.low, share.high]});
        let line =
            |line: &Line| json!({"count": line.strict.of, "strict": one(&line.strict), "loose": one(&line.loose)});
        let (general, types): (Vec<&Line>, Vec<&Line>) = self.lines.iter().partition(|line| !line.name.contains(':'));
        let mut value = json!({
            "prompts": self.prompts, "instructions": self.instructions, "blank_responses": self.blank,
            "not_decided": self.undecided,
        });
        for found in general {
            value[&found.name] = line(found);
        }
        let types = types.into_iter().map(|found| (found.name.clone(), line(found)));
        value["by_type"] = Value::Object(types.collect());
        value
    }

    /// The figures as a table.
    pub fn table(&self) -> String {
        let counts =
            format!("{} prompts, {} instructions, {} blank responses", self.prompts, self.instructions, self.blank);
        let mut out = vec![counts];
        out.push(format!(
            "{:<46} {:>7} {:^16} {:>7} {:^16} {:>6}",
            "", "strict", "95 % interval", "loose", "95 % interval", "count"
        ));
        for line in &self.lines {
            let one =
                |share: &Share| format!("{:>7.4} {:>16}", share.share, format!("{:.4} - {:.4}", share.low, share.high));
            out.push(format!("{:<46} {} {} {:>6}", line.name, one(&line.strict), one(&line.loose), line.strict.of));
        }
        out.extend(undecided_lines(&self.undecided));
        out.join("\n")
    }
}
