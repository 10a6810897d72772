//! Formats the loss as a formula with all numbers filled in, for logs, because `label_smoothing`, `ipo` and
//! `beta` mean different things in different tools.

use super::objective::{Loss, Method, Mix};
use crate::backend::contract::{ALPHA_BOUND, Curve, Link, Reduce, WeightedCurve};
use crate::data::group::Kind;
use crate::data::pack::LogpScope;

impl Loss {
    /// Formats the loss. `frozen` is true if scores are relative to a frozen reference model.
    pub fn formula(&self, frozen: bool) -> String {
        if self.method == Method::Sft {
            return "-mean log pi(response token)".into();
        }
        if self.method == Method::Kto {
            return self.unpaired_formula();
        }
        let trained: Vec<Kind> = Kind::ALL.into_iter().filter(|k| self.weights[k.index()] != 0.0).collect();
        let first = trained.first().map_or(self.scale[0], |k| self.scale[k.index()]);
        let same_scale = trained.iter().all(|k| self.scale[k.index()] == first);
        let weights = trained.iter().map(|k| format!("{} mean_{}", self.weights[k.index()], k.name()));
        let means = match self.mix {
            Mix::Union => "mean_all".to_owned(),
            Mix::Sum => weights.collect::<Vec<_>>().join(" + "),
        };
        let score = self.score(if same_scale { first.to_string() } else { "beta".to_owned() }, frozen);
        let of_terms = |part: &&WeightedCurve| part.curve.is_of_terms();
        let mut definitions = Vec::new();
        if self.curves.iter().filter(of_terms).count() < self.curves.len() {
            definitions.push(format!("z = sum sign * {score} - margin"));
        }
        if self.curves.iter().any(|part| part.curve.is_of_terms()) {
            definitions.push(format!("a and b = {score} of the positive and of the negative term"));
        }
        if self.curves.iter().any(|part| matches!(part.curve, Curve::Aot { .. })) {
            definitions.push("x and y = the parts of a - b by pi and by ref".to_owned());
        }
        let mut text = format!("[{means}] of {}, {}", self.curve_text(), definitions.join(", "));
        if let Some(links) = self.link_text(frozen) {
            text += &format!(", {links}");
        }
        if self.margin != 0.0 {
            text += &format!(", margin = the row's + {}", self.margin);
        }
        let has_beta = |part: &WeightedCurve| matches!(part.curve, Curve::Ipo | Curve::SppoHard);
        if same_scale && self.curves.iter().any(has_beta) {
            text += &format!(", beta = {first}");
        }
        if self.method == Method::Dpo && !same_scale {
            let betas = trained.iter().map(|k| format!("{} in {}", self.scale[k.index()], k.name()));
            text += &format!(", beta = {}", betas.collect::<Vec<_>>().join(", "));
        }
        if self.needs_rows() {
            let means = self.curve_types().zip(&self.curves).filter(|(_, part)| part.per_token);
            let names: Vec<String> = means.map(|(of, _)| of.name()).collect();
            text += &format!(", {} with every score divided by its number of tokens", names.join(" and "));
        }
        if let Some(clip) = self.pop_clip {
            text += &format!(", in inter the gap under the bare prompt is detached and clipped to [0, {clip}]");
        }
        if let Some(alpha) = self.ld_alpha {
            text += &format!(", log-probs beyond the shorter response of a pair times {alpha}");
        }
        if self.use_weighting {
            text +=
                ", each comparison times the product over its sequences of exp(mean(log p - log sum p^2)), detached";
        }
        if self.nll_weight != 0.0 {
            text += &format!(", + {} mean nll of preferred tokens", self.nll_weight);
        }
        if self.center != 0.0 {
            text += &format!(", + {} (r_chosen + r_rejected)^2 in base", self.center);
        }
        if self.method == Method::Dpo && self.scope == LogpScope::PromptAndResponse {
            text += "; prompt tokens are scored too, and each adds a row to the vocabulary head";
        }
        text
    }

    /// Formats the loss of rows with one response and a label.
    fn unpaired_formula(&self) -> String {
        let (beta, [desirable, undesirable]) = (self.scale[0], self.label_weights);
        let (shift, kl) = match self.curves[0].curve {
            Curve::Kto => (
                " - KL",
                ", KL = max(0, mean of log pi - log ref over mismatched responses of the micro-batch), detached",
            ),
            _ => ("", ""),
        };
        format!(
            "mean of {desirable} sigmoid(-z) over desirable and {undesirable} sigmoid(z) over undesirable rows, \
             z = {beta} (log pi - log ref{shift}){kl}"
        )
    }

    /// Formats the score of a sequence with its numbers, as the first curve uses it. `frozen` is true if the
    /// score is relative to a frozen reference model.
    pub(crate) fn score_text(&self, frozen: bool) -> String {
        let implicit = frozen && self.link == Link::Identity;
        let mut text = self.score(self.scale[0].to_string(), frozen);
        if self.curves[0].per_token {
            text += " / tokens";
        }
        if let Some(alpha) = self.ld_alpha {
            text += &format!(", tokens beyond the shorter response of a pair times {alpha}");
        }
        if implicit {
            text = format!("the implicit reward, {text}");
        }
        match self.link_text(frozen) {
            Some(link) => format!("{text}, {link}"),
            None if implicit || self.method == Method::Reward => text,
            None => format!("{text}, the plain log-probability of a response"),
        }
    }

    /// Formats the score of a sequence with the factor `beta`.
    fn score(&self, beta: String, frozen: bool) -> String {
        let mean = if self.reduce == Reduce::Mean { "mean " } else { "" };
        match (self.method, self.link) {
            (Method::Reward, _) => "r".to_owned(),
            (_, Link::Identity) if frozen => format!("{beta} {mean}(log pi - log ref)"),
            (_, Link::Identity) => format!("{beta} {mean}log pi"),
            (_, Link::Odds) => "log odds".to_owned(),
            _ => format!("{beta} s"),
        }
    }

    /// Definition of the symbol, `s` or `log odds`, that the text of `score` contains; `None` for the identity
    /// link, whose text has no symbol.
    fn link_text(&self, frozen: bool) -> Option<String> {
        let mean = if self.reduce == Reduce::Mean { "mean " } else { "" };
        let u = format!("{mean}{}", if frozen { "(log pi - log ref)" } else { "log pi" });
        Some(match self.link {
            Link::Identity => return None,
            Link::ForwardKl => format!("s = 1 - exp(-u), u = {u}"),
            Link::JensenShannon => format!("s = log 2 - softplus(-u), u = {u}"),
            Link::Alpha { alpha } => {
                format!("s = (exp(min(({alpha} - 1) u, {ALPHA_BOUND})) - 1) / ({alpha} - 1), u = {u}")
            }
            Link::Odds => format!("log odds = u - log(1 - exp(u)), u = {u}"),
        })
    }

    /// Formats the weighted sum of the curves.
    fn curve_text(&self) -> String {
        if self.curve_types().next().is_none() {
            return "0".to_owned();
        }
        let alone = self.curves.len() == 1 && self.curves[0].weight == 1.0;
        let texts = self.curves.iter().map(|part| match curve_text(part.curve) {
            text if alone => text,
            text => format!("{} ({text})", part.weight),
        });
        texts.collect::<Vec<_>>().join(" + ")
    }
}

fn curve_text(curve: Curve) -> String {
    match curve {
        Curve::Sigmoid { smoothing: 0.0 } => "softplus(-z)".to_owned(),
        Curve::Sigmoid { smoothing: e } => format!("{} softplus(-z) + {e} softplus(z)", 1.0 - e),
        Curve::Robust { smoothing: e } => {
            format!("({} softplus(-z) - {e} softplus(z)) / {}", 1.0 - e, 1.0 - 2.0 * e)
        }
        Curve::Hinge => "max(0, 1 - z)".to_owned(),
        Curve::Ipo => "((z - 1/2) / beta)^2".to_owned(),
        Curve::Exo { smoothing: e } => {
            format!("q log(q / {}) + (1 - q) log((1 - q) / {e}) with q = sigmoid(z)", 1.0 - e)
        }
        Curve::DiscoPop { temperature } => {
            format!("(1 - m) softplus(-z) + m exp(-z) with m = sigmoid(z / {temperature})")
        }
        Curve::ApoZero => "sigmoid(-a) + sigmoid(b)".to_owned(),
        Curve::ApoDown => "sigmoid(a) + sigmoid(b - a)".to_owned(),
        Curve::NcaPair => "softplus(-a) + softplus(a) / 2 + softplus(b) / 2".to_owned(),
        Curve::BcoPair => "softplus(-a) + softplus(b)".to_owned(),
        Curve::Aot { smoothing } => {
            format!("{} with z = x - y of equal rank", curve_text(Curve::Sigmoid { smoothing }))
        }
        Curve::AotUnpaired { smoothing } => {
            format!("{} with z = a - b of equal rank", curve_text(Curve::Sigmoid { smoothing }))
        }
        Curve::Kto | Curve::ApoZeroUnpaired => "sigmoid(-z)".to_owned(),
        Curve::Own(own) => format!("{}(z)", own.name),
        Curve::SppoHard => "((a - 1/2) / beta)^2 + ((b + 1/2) / beta)^2".to_owned(),
    }
}
