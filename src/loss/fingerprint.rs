//! Text of a loss in the fingerprint of a checkpoint. A run may be resumed only with a loss of the same text.

use super::loss_type::LossType;
use super::objective::{Loss, Method, Mix};
use crate::backend::contract::{Curve, KINDS, Link, Reduce, WeightedCurve};
use crate::data::pack::LogpScope;

impl Loss {
    /// Returns every setting of the loss as text. A loss of one plain curve has the text of version 0.1.0, so
    /// the checkpoints of that version can be resumed.
    pub fn fingerprint(&self) -> String {
        let mut text = match (self.link, &self.types[..], &self.curves[..]) {
            (Link::Identity, [_], &[WeightedCurve { curve, weight: 1.0, per_token: false }]) => plain(self, curve),
            _ => several(self),
        };
        // Earlier versions lack the settings below, so each is added only if it differs from its default.
        if let Some(alpha) = self.ld_alpha {
            text += &format!(", ld_alpha: {alpha}");
        }
        if self.use_weighting {
            text += ", use_weighting";
        }
        if self.label_weights != [1.0; 2] {
            text += &format!(", label_weights: {:?}", self.label_weights);
        }
        text
    }
}

/// Returns the text of a loss with several curves, a weight other than 1, a link other than the identity, or
/// a curve per token.
fn several(of: &Loss) -> String {
    /// Fields in the order of the text.
    #[derive(Debug)]
    #[expect(dead_code, reason = "read by Debug")]
    struct Loss<'a> {
        method: Method,
        types: &'a [(LossType, f64)],
        curves: &'a [WeightedCurve],
        link: Link,
        scale: [f64; KINDS],
        weights: [f64; KINDS],
        mix: Mix,
        margin: f64,
        pop_clip: Option<f64>,
        nll_weight: f64,
        center: f64,
        scope: LogpScope,
        reduce: Reduce,
        share_prefixes: bool,
    }
    let text = Loss {
        method: of.method,
        types: &of.types,
        curves: &of.curves,
        link: of.link,
        scale: of.scale,
        weights: of.weights,
        mix: of.mix,
        margin: of.margin,
        pop_clip: of.pop_clip,
        nll_weight: of.nll_weight,
        center: of.center,
        scope: of.scope,
        reduce: of.reduce,
        share_prefixes: of.share_prefixes,
    };
    format!("{text:?}")
}

fn plain(of: &Loss, curve: Curve) -> String {
    /// Fields in the order of the text.
    #[derive(Debug)]
    #[expect(dead_code, reason = "read by Debug")]
    struct Loss {
        method: Method,
        curve: Curve,
        scale: [f64; KINDS],
        weights: [f64; KINDS],
        mix: Mix,
        margin: f64,
        pop_clip: Option<f64>,
        nll_weight: f64,
        center: f64,
        scope: LogpScope,
        reduce: Reduce,
        share_prefixes: bool,
    }
    let text = Loss {
        method: of.method,
        curve,
        scale: of.scale,
        weights: of.weights,
        mix: of.mix,
        margin: of.margin,
        pop_clip: of.pop_clip,
        nll_weight: of.nll_weight,
        center: of.center,
        scope: of.scope,
        reduce: of.reduce,
        share_prefixes: of.share_prefixes,
    };
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::super::loss_type::LossType;
    use super::super::options::LossOptions;
    use super::*;

    fn text(options: LossOptions) -> String {
        options.resolve(Method::Dpo, [1.0; KINDS], false).unwrap().fingerprint()
    }

    #[test]
    fn a_plain_loss_keeps_its_text_and_others_are_told_apart() {
        let of = |loss_type: &[LossType]| LossOptions { loss_type: loss_type.to_vec(), ..LossOptions::default() };
        assert_eq!(
            text(LossOptions { label_smoothing: Some(0.1), ..of(&[LossType::Robust]) }),
            "Loss { method: Dpo, curve: Robust { smoothing: 0.1 }, scale: [0.1, 0.1, 0.1], weights: [1.0, 1.0, 1.0], \
             mix: Sum, margin: 0.0, pop_clip: None, nll_weight: 0.0, center: 0.0, scope: Response, reduce: Sum, \
             share_prefixes: true }"
        );
        assert_eq!(
            text(of(&[LossType::Sigmoid, LossType::Hinge])),
            "Loss { method: Dpo, types: [(Sigmoid, 1.0), (Hinge, 1.0)], curves: [WeightedCurve { curve: Sigmoid { \
             smoothing: 0.0 }, weight: 1.0, per_token: false }, WeightedCurve { curve: Hinge, weight: 1.0, per_token: \
             false }], link: Identity, scale: [0.1, 0.1, 0.1], weights: [1.0, 1.0, 1.0], mix: Sum, margin: 0.0, pop_clip: \
             None, nll_weight: 0.0, center: 0.0, scope: Response, reduce: Sum, share_prefixes: true }"
        );
        let texts = [
            text(of(&[LossType::Sigmoid])),
            text(of(&[LossType::SigmoidNorm])),
            text(of(&[LossType::ApoZero])),
            text(of(&[LossType::Simpo])),
            text(of(&[LossType::Sft])),
            text(of(&[LossType::Sigmoid, LossType::Hinge])),
            text(LossOptions { loss_weights: vec![1.0, 2.0], ..of(&[LossType::Sigmoid, LossType::Hinge]) }),
            text(LossOptions { loss_weights: vec![2.0], ..of(&[LossType::Sigmoid]) }),
            text(LossOptions { ld_alpha: Some(0.5), ..of(&[LossType::Sigmoid]) }),
            text(LossOptions { use_weighting: true, ..of(&[LossType::Sigmoid]) }),
        ];
        for (i, a) in texts.iter().enumerate() {
            texts[i + 1..].iter().for_each(|b| assert_ne!(a, b));
        }
    }
}
