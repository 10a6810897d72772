//! Metrics of a run. All values are kept as f64 sums with counts and divided once, so every split
//! into micro-batches gives the same metrics. Names follow TRL; per-kind values have the kind as
//! suffix.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::token_stats::TokenTally;
use crate::backend::contract::{KINDS, TERMS};
use crate::data::group::Kind;
use crate::data::pack::Batch;
use crate::files::{input, write_atomic};
use crate::loss::objective::{Loss, Method, Mix};
use crate::{Error, Result};

/// Sums over the comparisons of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KindTally {
    /// Sum of weight times loss over the comparisons.
    pub loss: f64,
    /// Number of comparisons.
    pub count: usize,
    /// Comparisons with a positive logit.
    pub correct: usize,
    /// Comparisons with a logit of exactly 0.
    pub ties: usize,
    /// Sum of logits.
    pub logit: f64,
}

impl KindTally {
    /// Adds one comparison.
    pub fn add(&mut self, loss: f64, logit: f64) {
        self.loss += loss;
        self.count += 1;
        self.correct += usize::from(logit > 0.0);
        self.ties += usize::from(logit == 0.0);
        self.logit += logit;
    }

    /// Share of comparisons with a positive logit; ties count as wrong.
    pub fn accuracy(&self) -> f64 {
        ratio(self.correct as f64, self.count)
    }

    /// Like [`KindTally::accuracy`], but a tie counts as half.
    pub fn accuracy_half(&self) -> f64 {
        ratio(self.correct as f64 + 0.5 * self.ties as f64, self.count)
    }

    fn merge(&mut self, other: &Self) {
        self.loss += other.loss;
        self.count += other.count;
        self.correct += other.correct;
        self.ties += other.ties;
        self.logit += other.logit;
    }
}

fn ratio(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Sums over the batches of a step or of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Sums by kind of comparison.
    pub kinds: [KindTally; KINDS],
    /// For each of several loss curves, sums of weight * value by kind; empty for a single curve.
    pub losses: Vec<[f64; KINDS]>,
    /// Sum of the rewards of the chosen sequences of base pairs, or of desirable rows.
    pub chosen_reward: f64,
    /// Sum of the rewards of rejected sequences, or of undesirable rows.
    pub rejected_reward: f64,
    /// Sum of the policy scores of chosen sequences, or of desirable rows.
    pub chosen_score: f64,
    /// Sum of the policy scores of rejected sequences, or of undesirable rows.
    pub rejected_score: f64,
    /// Numbers of chosen (or desirable) and of rejected (or undesirable) sequences.
    pub sides: [usize; 2],
    /// Sum of the divergences that the loss estimated from batches.
    pub divergence: f64,
    /// Number of micro-batches for which the loss estimated a divergence.
    pub divergences: usize,
    /// Smallest score.
    pub min_score: f64,
    /// Largest score.
    pub max_score: f64,
    /// Sum of the scores.
    pub score_sum: f64,
    /// Number of sequences.
    pub sequences: usize,
    /// Weighted negative log-likelihood of the likelihood term, summed.
    pub nll: f64,
    /// Sum of log-probs over response tokens.
    pub logp: f64,
    /// Tokens of responses.
    pub response_tokens: usize,
    /// Tokens processed by the model.
    pub tokens: usize,
    /// Sums over the tokens of base pairs, of labelled rows, or of SFT's responses; zero unless measured.
    pub(crate) of_tokens: TokenTally,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            kinds: [KindTally::default(); KINDS],
            losses: Vec::new(),
            chosen_reward: 0.0,
            rejected_reward: 0.0,
            chosen_score: 0.0,
            rejected_score: 0.0,
            sides: [0; 2],
            divergence: 0.0,
            divergences: 0,
            min_score: f64::INFINITY,
            max_score: f64::NEG_INFINITY,
            score_sum: 0.0,
            sequences: 0,
            nll: 0.0,
            logp: 0.0,
            response_tokens: 0,
            tokens: 0,
            of_tokens: TokenTally::default(),
        }
    }
}

impl Tally {
    /// Adds the sums of another tally of the same step.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.kinds.iter_mut().zip(&other.kinds) {
            mine.merge(theirs);
        }
        if self.losses.len() < other.losses.len() {
            self.losses.resize(other.losses.len(), [0.0; KINDS]);
        }
        for (mine, theirs) in self.losses.iter_mut().zip(&other.losses) {
            mine.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value);
        }
        self.chosen_reward += other.chosen_reward;
        self.rejected_reward += other.rejected_reward;
        self.chosen_score += other.chosen_score;
        self.rejected_score += other.rejected_score;
        self.sides = [0, 1].map(|side| self.sides[side] + other.sides[side]);
        self.divergence += other.divergence;
        self.divergences += other.divergences;
        self.min_score = self.min_score.min(other.min_score);
        self.max_score = self.max_score.max(other.max_score);
        self.score_sum += other.score_sum;
        self.sequences += other.sequences;
        self.nll += other.nll;
        self.logp += other.logp;
        self.response_tokens += other.response_tokens;
        self.tokens += other.tokens;
        self.of_tokens.merge(&other.of_tokens);
    }

    /// Adds a divergence that the loss estimated from a batch.
    pub(super) fn add_divergence(&mut self, divergence: f64) {
        self.divergence += divergence;
        self.divergences += 1;
    }

    /// Adds the values of a comparison's losses.
    pub(super) fn add_losses(&mut self, kind: usize, weight: f64, values: &[f64]) {
        self.losses.resize(values.len(), [0.0; KINDS]);
        for (sums, value) in self.losses.iter_mut().zip(values) {
            sums[kind] += weight * value;
        }
    }

    /// Mean rewards of the chosen and of the rejected sequences.
    fn mean_rewards(&self) -> [f64; 2] {
        [ratio(self.chosen_reward, self.sides[0]), ratio(self.rejected_reward, self.sides[1])]
    }

    /// Mean over the comparisons, from sums by kind.
    fn mean_of(&self, loss: &Loss, sums: [f64; KINDS]) -> f64 {
        let total: usize = self.kinds.iter().map(|k| k.count).sum();
        match loss.mix {
            Mix::Sum => (0..KINDS).map(|k| loss.weights[k] * ratio(sums[k], self.kinds[k].count)).sum(),
            Mix::Union => ratio(sums.iter().sum(), total),
        }
    }

    /// Loss of the summed batches.
    pub fn loss(&self, loss: &Loss) -> f64 {
        if loss.method == Method::Sft {
            return ratio(-self.logp, self.response_tokens);
        }
        self.mean_of(loss, self.kinds.each_ref().map(|kind| kind.loss)) + self.nll
    }

    /// Values by name, with `prefix` (empty or `eval_`). Values without data are omitted.
    pub fn named(&self, loss: &Loss, prefix: &str) -> Map<String, Value> {
        let mut map = Map::new();
        let mut put = |name: &str, value: f64| {
            map.insert(format!("{prefix}{name}"), number(value));
        };
        put("loss", self.loss(loss));
        match loss.method {
            Method::Sft => put("mean_token_logp", ratio(self.logp, self.response_tokens)),
            Method::Reward if self.sequences > 0 => {
                put("min_reward", self.min_score);
                put("mean_reward", ratio(self.score_sum, self.sequences));
                put("max_reward", self.max_score);
            }
            Method::Reward | Method::Dpo | Method::Kto => {}
        }
        if loss.nll_weight != 0.0 {
            put("nll_loss", self.nll);
        }
        // Each of several losses is reported without its mixing weight, but with the weights of the kinds.
        if self.losses.len() > 1 {
            for (of, sums) in loss.curve_types().zip(&self.losses) {
                put(&format!("losses/{}", of.name()), self.mean_of(loss, *sums));
            }
        }
        let base = &self.kinds[Kind::Base.index()];
        if base.count > 0 {
            let names = match loss.method {
                Method::Reward => ["accuracy", "margin"],
                Method::Sft | Method::Dpo | Method::Kto => ["rewards/accuracies", "rewards/margins"],
            };
            put(names[0], base.accuracy());
            match loss.method {
                // KTO rows are not pairs: the margin is the difference of two means, so the batches must have
                // both desirable and undesirable rows.
                Method::Kto if self.sides.contains(&0) => {}
                Method::Kto => put(names[1], self.mean_rewards()[0] - self.mean_rewards()[1]),
                _ => put(names[1], ratio(base.logit, base.count)),
            }
        }
        if loss.method.has_policy() {
            let scores = [self.chosen_score, self.rejected_score];
            for (side, name) in ["chosen", "rejected"].into_iter().enumerate().filter(|(side, _)| self.sides[*side] > 0)
            {
                put(&format!("rewards/{name}"), self.mean_rewards()[side]);
                put(&format!("logps/{name}"), ratio(scores[side], self.sides[side]));
            }
        }
        self.of_tokens.named(loss.method, &mut put);
        if self.divergences > 0 {
            put("kl", ratio(self.divergence, self.divergences));
        }
        for kind in Kind::ALL {
            let (tally, name) = (&self.kinds[kind.index()], kind.name());
            if tally.count > 0 {
                put(&format!("loss/{name}"), ratio(tally.loss, tally.count));
                put(&format!("rewards/accuracies/{name}"), tally.accuracy());
                if loss.method != Method::Kto {
                    put(&format!("rewards/margins/{name}"), ratio(tally.logit, tally.count));
                }
                put(&format!("ties/{name}"), tally.ties as f64);
                put(&format!("comparisons/{name}"), tally.count as f64);
            }
        }
        map
    }
}

/// Adds the scores of a batch: minimum, maximum and sum over sequences, and sums over chosen and over
/// rejected sequences of base pairs (or desirable and undesirable rows). `stats` is (ROW_STATS, seqs), or
/// empty if tokens are not measured.
pub(super) fn tally_scores(tally: &mut Tally, batch: &Batch, score: &[f64], reference: &[f64], stats: &[f64]) {
    for &s in score {
        tally.min_score = tally.min_score.min(s);
        tally.max_score = tally.max_score.max(s);
        tally.score_sum += s;
    }
    tally.sequences += score.len();
    let table = &batch.comparisons;
    for c in 0..table.kind.len() {
        let terms = &table.term_sequence[c * TERMS..(c + 1) * TERMS];
        if table.kind[c] as usize != Kind::Base.index() || terms[2] >= 0 {
            continue;
        }
        for slot in (c * TERMS..c * TERMS + 2).filter(|&slot| table.term_sequence[slot] >= 0) {
            let s = table.term_sequence[slot] as usize;
            let reward = table.scale[c] * (score[s] - reference[s]);
            match table.term_sign[slot] {
                1 => {
                    tally.sides[0] += 1;
                    tally.chosen_reward += reward;
                    tally.chosen_score += score[s];
                    tally.of_tokens.add(0, batch, s, stats);
                }
                -1 => {
                    tally.sides[1] += 1;
                    tally.rejected_reward += reward;
                    tally.rejected_score += score[s];
                    tally.of_tokens.add(1, batch, s, stats);
                }
                // A mismatched sequence is used only for the divergence estimate.
                _ => {}
            }
        }
    }
}

/// Adds the tokens of all responses, for SFT.
pub(super) fn tally_responses(tally: &mut Tally, batch: &Batch, stats: &[f64]) {
    (0..batch.sequences.len()).for_each(|s| tally.of_tokens.add(0, batch, s, stats));
}

/// Returns the names of the metrics that count the tied comparisons and all comparisons of an accuracy;
/// `None` if the name is not that of an accuracy. If both counts are equal, every comparison is a tie and the
/// accuracy says nothing.
pub(crate) fn tie_names(accuracy: &str) -> Option<[String; 2]> {
    let (prefix, bare) = match accuracy.strip_prefix("eval_") {
        Some(bare) => ("eval_", bare),
        None => ("", accuracy),
    };
    let kind = match bare {
        "accuracy" | "rewards/accuracies" => Kind::Base.name(),
        _ => bare.strip_prefix("rewards/accuracies/")?,
    };
    Some([format!("{prefix}ties/{kind}"), format!("{prefix}comparisons/{kind}")])
}

/// JSON number, or a string for a non-finite value, which JSON cannot represent.
pub fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// File of a run's events.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Reads a value written by [`number`]; `None` for anything else.
pub(crate) fn read_number(value: &Value) -> Option<f64> {
    match value.as_str() {
        None => value.as_f64(),
        Some("NaN") => Some(f64::NAN),
        Some("inf") => Some(f64::INFINITY),
        Some("-inf") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

/// Appends events to `metrics.jsonl`, one JSON object per line.
pub(super) struct MetricsWriter {
    pub(super) path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens `metrics.jsonl` of a run folder. `from` is the checkpoint of a resumed run and its
    /// step. The file then keeps the events up to that step, copied from the checkpoint's run;
    /// later events are dropped.
    pub fn open(output_dir: &Path, from: Option<(&Path, u64)>) -> Result<Self> {
        let path = output_dir.join(METRICS_FILE);
        match from {
            None => write_atomic(&path, b"")?,
            Some((checkpoint, step)) => {
                let first = checkpoint.canonicalize().unwrap_or_else(|_| checkpoint.to_path_buf());
                let source = first.parent().unwrap_or(output_dir).join(METRICS_FILE);
                write_atomic(&path, events_until(&source, step)?.as_bytes())?;
            }
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Self { path, file })
    }

    /// Syncs written events to disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }

    /// Writes an event: schema, kind and step, then `values`.
    pub fn write(&mut self, kind: &str, step: u64, values: Map<String, Value>) -> Result<()> {
        let mut event = Map::new();
        event.insert("schema".into(), json!(1));
        event.insert("kind".into(), json!(kind));
        event.insert("step".into(), json!(step));
        event.extend(values);
        let mut line = Value::Object(event).to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))
    }
}

/// Lines of the events up to `step`, without a line truncated by a kill. A run that stopped after
/// its checkpoint repeats the later steps, so their events are written again.
fn events_until(path: &Path, step: u64) -> Result<String> {
    if !input::is_named(path) {
        return Ok(String::new());
    }
    let bytes = input::read(path, input::MAX_RECORD).map_err(input::model_error(path))?;
    let text = String::from_utf8_lossy(&bytes);
    let early =
        |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|v| v["step"].as_u64().is_some_and(|s| s <= step));
    Ok(text.lines().filter(early).flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_named_after_the_kind_of_their_accuracy() {
        let names = |accuracy| tie_names(accuracy).map(|names| names.join(" "));
        assert_eq!(names("accuracy").as_deref(), Some("ties/base comparisons/base"));
        assert_eq!(names("eval_rewards/accuracies/intra").as_deref(), Some("eval_ties/intra eval_comparisons/intra"));
        assert_eq!(names("rewards/margins/base"), None);
    }

    #[test]
    fn any_split_gives_the_same_loss_and_ties_count_as_wrong() {
        let loss = crate::loss::objective::LossOptions::default().resolve(Method::Dpo, [1.0, 2.0, 0.5], false).unwrap();
        let values = [(0, 0.7, 0.1), (1, 0.2, -0.5), (0, 0.9, 0.0), (2, 0.3, 2.0), (1, 0.4, 0.2)];
        let mut whole = Tally::default();
        let (mut left, mut right) = (Tally::default(), Tally::default());
        for (i, (kind, l, z)) in values.into_iter().enumerate() {
            whole.kinds[kind].add(l, z);
            if i % 2 == 0 { &mut left } else { &mut right }.kinds[kind].add(l, z);
        }
        left.merge(&right);
        assert!((left.loss(&loss) - whole.loss(&loss)).abs() < 1e-15);
        assert!((whole.loss(&loss) - (0.8 + 2.0 * 0.3 + 0.5 * 0.3)).abs() < 1e-12);
        assert_eq!(whole.kinds[0].accuracy(), 0.5);
        assert_eq!(whole.kinds[0].accuracy_half(), 0.75);
    }

    #[test]
    fn non_finite_numbers_become_strings() {
        assert_eq!(number(f64::NAN).to_string(), "\"NaN\"");
        assert_eq!(number(1.5).to_string(), "1.5");
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -2.25] {
            assert_eq!(read_number(&number(value)).map(f64::to_bits), Some(value.to_bits()));
        }
        assert_eq!(read_number(&json!("resumed")), None);
    }
}
