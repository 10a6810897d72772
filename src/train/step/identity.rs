//! DPO's start-up check: with equal weights, policy and frozen reference give bit-identical scores.

use super::Trainer;
use crate::backend::Backend;
use crate::data::tokenized::TokenizedGroup;
use crate::{Error, Result};

impl<B: Backend> Trainer<'_, B> {
    /// Start-up check of DPO. If policy and frozen reference hold the same weights, every score
    /// difference is exactly 0, and every logistic comparison without a margin costs exactly ln 2.
    /// Any other result means that the two forward passes differ.
    pub(in crate::train) fn identity_check(&mut self, groups: &[&TokenizedGroup]) -> Result<()> {
        let mut packed = self.spare_step();
        self.packer.pack(&[groups.to_vec()], &mut packed)?;
        let first = &packed.micro_batches()[0];
        self.upload(first)?;
        if let Some(frozen) = &mut self.frozen {
            frozen.forward(self.backend, &mut self.policy, &self.batch, self.loss.reduce)?;
        }
        self.scorer.forward(self.backend, &mut self.policy, &self.batch, self.loss.reduce)?;
        let seqs = first.batch.seqs();
        let Some(frozen) = &self.frozen else {
            return Err(Error::Runtime("the identity check needs a frozen reference".into()));
        };
        let from = frozen.file().map_or(String::new(), |path| {
            format!("; the frozen log-probs were read from {}; delete that file to compute them again", path.display())
        });
        let (policy, frozen) =
            (self.scorer.read_score(self.backend, seqs)?, frozen.read(self.backend, &self.batch, seqs)?);
        if let Some(i) = policy.iter().chain(&frozen).position(|score| !score.is_finite()) {
            return Err(Error::Diverged(format!(
                "the start model scores sequence {} of the first batch as {}: its weights overflow; start from a model \
                 that did not diverge",
                i % seqs.max(1),
                policy.iter().chain(&frozen).nth(i).copied().unwrap_or(f64::NAN)
            )));
        }
        match policy.iter().zip(&frozen).position(|(p, r)| p != r) {
            None => Ok(()),
            Some(i) => Err(Error::Runtime(format!(
                "identity check failed: policy and frozen reference hold the same weights but score sequence {i} as {} and \
                 {}; the first loss would not be ln 2{from}",
                policy[i], frozen[i]
            ))),
        }
    }
}
