//! Two sets of responses to the same prompts, paired: differences with bootstrap intervals by
//! prompt, McNemar's test, and the sign test over prompts ([`crate::eval::compare`]).

use serde_json::{Value, json};

use super::check::Verdicts;
use super::rows::Prompt;
use super::summary::{Outcomes, outcomes};
use crate::eval::compare::Paired;
use crate::eval::measure::Observation;
use crate::eval::statistics::Resampling;
use crate::eval::table::probability;

/// One figure of the comparison.
pub struct Line {
    pub name: String,
    pub strict: Paired,
    pub loose: Paired,
}

/// Compares verdicts on two responses to every prompt.
pub fn compare(prompts: &[Prompt], a: &[Verdicts], b: &[Verdicts], resampling: Resampling) -> Vec<Line> {
    let one = |(name, a, b): (String, Outcomes, Outcomes)| {
        let paired = |label: &str, pick: fn(&(u32, bool, bool)) -> bool| {
            let observed = |found: &Outcomes| -> Vec<Observation> {
                let logit = |one| if pick(one) { 1.0 } else { -1.0 };
                found.iter().map(|one| Observation { group: one.0 as usize, logit: logit(one) }).collect()
            };
            Paired::of(&observed(&a), &observed(&b), resampling, &["ifeval", label, &name])
        };
        let (strict, loose) = (paired("strict", |one| one.1), paired("loose", |one| one.2));
        Line { name, strict, loose }
    };
    // Whether an instruction gives a verdict depends only on the prompt, so both lists have the same entries.
    let both = outcomes(prompts, a).into_iter().zip(outcomes(prompts, b));
    both.map(|((name, a), (_, b))| (name, a, b)).filter(|(_, a, _)| !a.is_empty()).map(one).collect()
}

/// The comparison as JSON: `prompt`, `instruction` and `by_type`.
pub fn json(lines: &[Line]) -> Value {
    let one = |p: &Paired| {
        json!({
            "a": p.a, "b": p.b, "difference": p.difference.value, "interval": p.difference.interval,
            "only_a": p.only_a, "only_b": p.only_b, "mcnemar_p": p.mcnemar,
            "prompts_a": p.groups_a, "prompts_b": p.groups_b, "sign_p": p.sign_test,
        })
    };
    let line =
        |line: &Line| json!({"count": line.strict.count, "strict": one(&line.strict), "loose": one(&line.loose)});
    let (types, general): (Vec<&Line>, Vec<&Line>) = lines.iter().partition(|line| line.name.contains(':'));
    let mut value = Value::Object(general.into_iter().map(|found| (found.name.clone(), line(found))).collect());
    value["by_type"] = Value::Object(types.into_iter().map(|found| (found.name.clone(), line(found))).collect());
    value
}

/// The comparison as a table.
pub fn table(lines: &[Line], names: [&str; 2]) -> String {
    let mut out = vec![format!("A = {}\nB = {}", names[0], names[1])];
    out.push(format!(
        "{:<46} {:<6} {:>7} {:>7} {:>8} {:^18} {:>6} {:>7} {:>7} {:>9} {:>9}",
        "", "", "A", "B", "B - A", "95 % interval", "count", "only A", "only B", "McNemar p", "prompts p"
    ));
    for line in lines {
        for (kind, p) in [("strict", &line.strict), ("loose", &line.loose)] {
            let span = p.difference.interval.map_or("-".into(), |[low, high]| format!("{low:+.4} to {high:+.4}"));
            out.push(format!(
                "{:<46} {kind:<6} {:>7.4} {:>7.4} {:>+8.4} {span:>18} {:>6} {:>7} {:>7} {:>9} {:>9}",
                line.name,
                p.a,
                p.b,
                p.difference.value,
                p.count,
                p.only_a,
                p.only_b,
                probability(p.mcnemar),
                probability(p.sign_test)
            ));
        }
    }
    out.join("\n")
}
