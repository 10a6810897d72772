//! Reads the options that weight tokens, pairs or rows of a loss (`--ld-alpha`, `--use-weighting`,
//! `--desirable-weight` and `--undesirable-weight`). An option that has no meaning for the loss is an error.

use std::collections::BTreeSet;

use super::loss_type::LossType;
use super::objective::{Loss, Method};
use super::options::LossOptions;
use crate::data::tokenized::TokenizedGroup;
use crate::error::{refuse_given, refuse_outside_f32};
use crate::{Error, Result};

/// Losses with their weights.
type Types<'a> = &'a [(LossType, f64)];

impl LossOptions {
    /// Weight of the tokens beyond the length of the shorter response; `None` if it is not given or 1, which has
    /// no effect.
    pub(super) fn tail_weight(&self, types: Types<'_>, nll_weight: f64) -> Result<Option<f64>> {
        let Some(alpha) = self.ld_alpha else { return Ok(None) };
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::Usage(format!("--ld-alpha {alpha}: a number from 0 to 1 is needed")));
        }
        if types.iter().any(|(of, _)| of.is_reference_free()) || nll_weight != 0.0 {
            return Err(Error::Usage(
                "--ld-alpha weighs the log-probs of scores, and a likelihood term (--loss-type sft, simpo or orpo, \
                 --nll-weight) counts every token of a response alike; leave one of them out"
                    .into(),
            ));
        }
        Ok(Some(alpha).filter(|&alpha| alpha != 1.0))
    }

    /// Whether pairs are weighted by the policy's probability of their sequences.
    pub(super) fn weighs_pairs(&self, types: Types<'_>, nll_weight: f64) -> Result<bool> {
        if !self.use_weighting {
            return Ok(false);
        }
        let sorting = [LossType::Aot, LossType::AotUnpaired];
        let why = match types.iter().find(|(of, _)| sorting.contains(of) || of.is_reference_free()) {
            Some((of, _)) if sorting.contains(of) => {
                format!("--loss-type {} sorts the pairs, so no pair has a separate weight", of.name())
            }
            Some((of, _)) => {
                format!("--loss-type {} belongs to TRL's CPO or ORPO trainer, which has no such option", of.name())
            }
            None if nll_weight != 0.0 => {
                "the likelihood term (--loss-type sft, --nll-weight) is a mean over tokens of all pairs".into()
            }
            None => return Ok(true),
        };
        Err(Error::Usage(format!("--use-weighting: {why}; leave one of them out")))
    }

    /// Weights of desirable and of undesirable rows.
    pub(super) fn label_weights(&self, method: Method) -> Result<[f64; 2]> {
        let given = [("--desirable-weight", self.desirable_weight), ("--undesirable-weight", self.undesirable_weight)];
        if method != Method::Kto {
            let unused = given.map(|(flag, weight)| (flag, weight.is_some()));
            refuse_given(&unused, &format!("in this {} run; leave it out", method.name()))?;
        }
        let mut weights = [1.0; 2];
        for (to, (flag, weight)) in weights.iter_mut().zip(given) {
            *to = weight.unwrap_or(1.0);
            if !(to.is_finite() && *to >= 0.0) {
                return Err(Error::Usage(format!("{flag} {to}: a finite number of at least 0 is needed")));
            }
            refuse_outside_f32(flag, *to)?;
        }
        if weights == [0.0; 2] {
            return Err(Error::Usage(
                "--desirable-weight and --undesirable-weight are both 0; at least one must be above 0".into(),
            ));
        }
        Ok(weights)
    }
}

impl Loss {
    /// Writes to `starts`, in batch order, the number of scored tokens before the tail of each sequence of
    /// `groups`. `starts` stays empty without `--ld-alpha`.
    pub(crate) fn tail_starts(&self, groups: &[&TokenizedGroup], starts: &mut Vec<f64>) {
        starts.clear();
        if self.ld_alpha.is_none() {
            return;
        }
        for group in groups {
            for (s, sequence) in group.sequences.iter().enumerate() {
                let length = sequence.response_ids.len();
                let before = group.scored_tokens(s, self.scope) - length;
                starts.push((before + shared_length(group, sequence.response).min(length)) as f64);
            }
        }
    }

    /// Checks that every response is compared with at most one set of responses. Its tail then has one start.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the group.
    pub fn check_tails(&self, groups: &[TokenizedGroup]) -> Result<()> {
        if self.ld_alpha.is_none() {
            return Ok(());
        }
        for group in groups {
            for response in 0..group.group.responses.len() {
                let with: BTreeSet<BTreeSet<usize>> = compared_with(group, response).collect();
                if with.len() > 1 {
                    return Err(Error::Usage(format!(
                        "--ld-alpha needs one common length per response, but response {response} of group {} is \
                         compared with several others; set --pairs best-worst or --mix union, or leave --ld-alpha out",
                        group.group.id
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Returns the response set of each comparison that contains `response`. A comparison of one response under two
/// prompts is skipped, because it has only one length.
fn compared_with(group: &TokenizedGroup, response: usize) -> impl Iterator<Item = BTreeSet<usize>> + '_ {
    let responses = |c: usize| -> BTreeSet<usize> {
        group.comparisons[c].terms.iter().map(|t| group.sequences[t.sequence].response).collect()
    };
    (0..group.comparisons.len()).map(responses).filter(move |of| of.len() > 1 && of.contains(&response))
}

/// Token count of the shortest response among `response` and those it is compared with; `usize::MAX` if it is
/// compared with none.
fn shared_length(group: &TokenizedGroup, response: usize) -> usize {
    let shared: BTreeSet<usize> = compared_with(group, response).flatten().collect();
    let lengths = group.sequences.iter().filter(|s| shared.contains(&s.response)).map(|s| s.response_ids.len());
    lengths.min().unwrap_or(usize::MAX)
}
