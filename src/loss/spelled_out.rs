//! Options of a loss with every value explicit, for the record of a run.

use super::loss_type::LossType;
use super::objective::{Loss, Method, Mix};
use super::options::{DEFAULT_BETA, DISCOPOP_TAU, LossOptions, ReduceName, SIMPO_GAMMA, ScopeName};
use crate::backend::contract::Reduce;
use crate::data::pack::LogpScope;

impl LossOptions {
    /// Returns the options with unset values filled in from `loss`, to which they resolve. The result
    /// resolves to the same loss. Options that have no effect stay unset.
    pub fn spelled_out(&self, loss: &Loss) -> Self {
        let mut all = self.clone();
        let has = |of: LossType| loss.types.iter().any(|(other, _)| *other == of);
        let compares = loss.curve_types().next().is_some();
        all.loss_type = loss.types.iter().map(|(of, _)| *of).collect();
        all.mix = Some(loss.mix);
        if loss.mix == Mix::Sum && compares {
            [all.base_weight, all.intra_weight, all.inter_weight] = loss.weights.map(Some);
        }
        if compares {
            all.margin = Some(self.margin.unwrap_or(0.0));
            all.pop_clip = loss.pop_clip;
        }
        if loss.types.iter().any(|(of, _)| of.takes_smoothing()) {
            all.label_smoothing = Some(self.label_smoothing.unwrap_or(0.0));
        }
        if loss.curves.iter().any(|part| part.curve.is_of_terms()) {
            all.margin = self.margin;
        }
        match loss.method {
            Method::Sft => {}
            Method::Reward => all.center_rewards_coefficient = Some(loss.center),
            Method::Kto => {
                [all.desirable_weight, all.undesirable_weight] = loss.label_weights.map(Some);
                all.beta = Some(loss.scale[0]);
                all.mix = None;
                [all.base_weight, all.intra_weight, all.inter_weight, all.margin] = [None; 4];
            }
            Method::Dpo => {
                all.loss_weights = loss.types.iter().map(|(_, weight)| *weight).collect();
                all.nll_weight = Some(self.own_likelihood(&loss.types));
                all.logp_scope = Some(match loss.scope {
                    LogpScope::Response => ScopeName::Response,
                    LogpScope::PromptAndResponse => ScopeName::PromptAndResponse,
                });
                all.simpo_gamma = self.simpo_gamma.or(has(LossType::Simpo).then_some(SIMPO_GAMMA));
                all.discopop_tau = self.discopop_tau.or(has(LossType::Discopop).then_some(DISCOPOP_TAU));
                if compares {
                    self.spell_scores(loss, &mut all);
                }
            }
        }
        all
    }

    /// Sets the options of the scores of a DPO run with comparisons.
    fn spell_scores(&self, loss: &Loss, all: &mut Self) {
        match loss.types[0].0 {
            LossType::Orpo => all.beta = Some(self.beta.unwrap_or(DEFAULT_BETA)),
            _ => [all.beta, all.beta_intra, all.beta_inter] = loss.scale.map(Some),
        }
        // Losses with different reductions have no common `--logp-reduce`.
        if !loss.needs_rows() {
            all.logp_reduce = Some(match loss.reduce {
                Reduce::Sum => ReduceName::Sum,
                Reduce::Mean => ReduceName::Mean,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn options_with_every_value_resolve_to_the_same_loss() {
        let presets = [[1.0; 3], [1.0, 0.5, 0.0]];
        let mut given: Vec<(Method, LossOptions)> = vec![
            (Method::Reward, LossOptions::default()),
            (Method::Reward, LossOptions { loss_type: vec![LossType::Hinge], ..LossOptions::default() }),
            (Method::Dpo, LossOptions::default()),
            (Method::Dpo, LossOptions { mix: Some(Mix::Union), beta_intra: Some(0.7), ..LossOptions::default() }),
            (Method::Dpo, LossOptions { loss_type: vec![LossType::Sft, LossType::Ipo], ..LossOptions::default() }),
            (
                Method::Dpo,
                LossOptions {
                    loss_type: vec![LossType::Sigmoid, LossType::Sft],
                    loss_weights: vec![1.0, 0.25],
                    nll_weight: Some(0.5),
                    ..LossOptions::default()
                },
            ),
        ];
        for of in LossType::value_variants() {
            let label_smoothing = of.takes_smoothing().then_some(0.1);
            given.push((Method::Dpo, LossOptions { loss_type: vec![*of], label_smoothing, ..LossOptions::default() }));
        }
        let mut count = 0;
        for ((method, options), preset) in given.iter().flat_map(|given| presets.map(|preset| (given, preset))) {
            let Ok(loss) = options.resolve(*method, preset, false) else { continue };
            let all = options.spelled_out(&loss);
            // Explicit weights replace any preset. With union, or without comparisons, the weights stay unset.
            let preset = if loss.mix == Mix::Union || loss.curve_types().next().is_none() { preset } else { [9.0; 3] };
            let again = all.resolve(*method, preset, false).unwrap_or_else(|e| panic!("{all:?}: {e}"));
            assert_eq!(again, loss, "{options:?}");
            count += 1;
        }
        assert!(count > 35, "{count}");
    }
}
