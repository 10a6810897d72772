//! The table of benchmarked calls: the ops of a training step at the sizes of published models, for
//! given numbers of tokens.

use super::work::attention::{Attention, Shape};
use super::work::attention_cached::AttentionCached;
use super::work::elementwise::{LayerNorm, PlainActivation, ScaleAdd};
use super::work::embedding::Embedding;
use super::work::glu::{Glu, LinearGlu};
use super::work::head::{Head, StoredLogits};
use super::work::head_preference::PreferenceHead;
use super::work::linear::{BiasGrad, Linear, Pass};
use super::work::norm::{Norm, QkNorm};
use super::work::optim::{AdamWUpdate, GradientNorm};
use super::work::preference::PreferenceLoss;
use super::work::reward::RewardHead;
use super::work::rope::RotaryEmbedding;
use super::work::rotated::{RotatedAttention, RotatedLinear};
use super::work::segment::SegmentSum;
use super::work::{Call, Work, shape_text};
use crate::backend::contract::*;

/// Sizes of a model, as in its configuration file.
#[derive(Clone, Copy, Debug)]
pub struct ModelSizes {
    pub name: &'static str,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// Whether the model has SwiGLU and rotary positions. Otherwise its MLP is two GEMMs, as in
    /// GPT-2.
    pub gated: bool,
    /// Whether queries, keys and values have a bias.
    pub bias: bool,
    /// Whether only the vocabulary head is benchmarked.
    pub head_only: bool,
    /// Number of parameters.
    pub parameters: usize,
}

/// Benchmarked models. `gemma-3-1b` is included for its vocabulary of 262,144.
pub const MODELS: [ModelSizes; 6] = [
    ModelSizes {
        name: "gpt2-124m",
        hidden: 768,
        intermediate: 3072,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        vocab: 50_257,
        gated: false,
        bias: true,
        head_only: false,
        parameters: 124_439_808,
    },
    ModelSizes {
        name: "qwen2.5-0.5b",
        hidden: 896,
        intermediate: 4864,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        vocab: 151_936,
        gated: true,
        bias: true,
        head_only: false,
        parameters: 494_032_768,
    },
    ModelSizes {
        name: "qwen2.5-1.5b",
        hidden: 1536,
        intermediate: 8960,
        heads: 12,
        kv_heads: 2,
        head_dim: 128,
        vocab: 151_936,
        gated: true,
        bias: true,
        head_only: false,
        parameters: 1_543_714_304,
    },
    ModelSizes {
        name: "llama-3.1-8b",
        hidden: 4096,
        intermediate: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        gated: true,
        bias: false,
        head_only: false,
        parameters: 8_030_261_248,
    },
    ModelSizes {
        name: "gemma-3-1b",
        hidden: 1152,
        intermediate: 6912,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        vocab: 262_144,
        gated: true,
        bias: false,
        head_only: true,
        parameters: 999_885_952,
    },
    ModelSizes {
        name: "tiny",
        hidden: 64,
        intermediate: 160,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 1999,
        gated: true,
        bias: true,
        head_only: false,
        parameters: 200_000,
    },
];

/// Model name that selects [`squares`].
pub const SQUARE: &str = "square";

/// Square GEMMs, which belong to no model. GEMM rates are usually quoted for them.
pub fn squares() -> Vec<Case> {
    let sides = [4096, 8192];
    let passes = [Pass::Forward, Pass::Input, Pass::Weight];
    let case = |side, pass| {
        let dims = LinearDims { tokens: side, inputs: side, outputs: side };
        Case { model: SQUARE, layer: "product", work: Linear { pass, dims }.into() }
    };
    sides.into_iter().flat_map(|side| passes.map(|pass| case(side, pass))).collect()
}

/// A call, with the model and the layer whose sizes it has.
#[derive(Clone, Debug)]
pub struct Case {
    pub model: &'static str,
    /// Layer of the model, such as `qkv`, `attention` or `head`.
    pub layer: &'static str,
    pub work: Work,
}

impl Case {
    /// Sizes as text.
    pub fn shape(&self) -> String {
        shape_text(&self.work.sizes())
    }

    /// Name of the op.
    pub fn work_op(&self) -> &'static str {
        self.work.op()
    }

    /// Whether a text is the call's layer or one of its sizes, as `hidden=896`.
    pub fn answers(&self, text: &str) -> bool {
        self.layer == text || self.shape().split(' ').any(|size| size == text)
    }
}

/// Size limits by available memory.
#[derive(Clone, Copy, Debug)]
pub struct SizeLimits {
    /// Maximum number of elements of the optimiser's operands. For a larger model, the operands have this
    /// many.
    pub parameters: usize,
    /// Maximum number of elements of stored logits.
    pub logits: usize,
}

/// All calls of a model for a number of tokens.
pub fn cases(model: &ModelSizes, tokens: usize, precision: Precision, size_limits: SizeLimits) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |layer, work: Work| cases.push(Case { model: model.name, layer, work });
    let m = model;
    if !m.head_only {
        body(m, tokens, &mut add);
    }
    for backward in [false, true] {
        add("head", Head::new(backward, tokens, m.hidden, m.vocab).into());
    }
    add("head", PreferenceHead::new(tokens, m.hidden, m.vocab).into());
    // The head's bare GEMMs, as a baseline for the fused head.
    if tokens.saturating_mul(m.vocab) <= size_limits.logits {
        for pass in [Pass::Forward, Pass::Input, Pass::Weight] {
            let dims = LinearDims { tokens, inputs: m.hidden, outputs: m.vocab };
            add("logits", Linear { pass, dims }.into());
        }
    }
    let rows = tokens.min(size_limits.logits / m.vocab).max(1);
    for backward in [false, true] {
        add("stored logits", StoredLogits::new(backward, rows, m.vocab).into());
    }
    if !m.head_only {
        let len = m.parameters.min(size_limits.parameters);
        add("optimiser", GradientNorm { len }.into());
        let decayed = len - len / 1000;
        add("optimiser", AdamWUpdate { len, decayed, master: precision == Precision::Bf16 }.into());
    }
    cases
}

fn body(m: &ModelSizes, tokens: usize, add: &mut impl FnMut(&'static str, Work)) {
    let fused = (m.heads + 2 * m.kv_heads) * m.head_dim;
    let linear = |pass, inputs, outputs| Work::from(Linear { pass, dims: LinearDims { tokens, inputs, outputs } });
    let mut layer = |name, first, inputs, outputs| {
        for pass in [first, Pass::Input, Pass::Weight] {
            add(name, linear(pass, inputs, outputs));
        }
    };
    layer("qkv", if m.bias { Pass::Bias } else { Pass::Forward }, m.hidden, fused);
    layer("o", Pass::Residual, m.heads * m.head_dim, m.hidden);
    layer("down", Pass::Residual, m.intermediate, m.hidden);
    match m.gated {
        false => {
            layer("up", Pass::Bias, m.hidden, m.intermediate);
            add("up", linear(Pass::Norms, m.hidden, m.intermediate));
        }
        true => {
            let dims = LinearGluDims { tokens, hidden: m.hidden, intermediate: m.intermediate };
            add("gate and up", LinearGlu { backward: false, dims }.into());
            add("gate and up", linear(Pass::Input, m.hidden, 2 * m.intermediate));
            add("gate and up", linear(Pass::Weight, m.hidden, 2 * m.intermediate));
            add("gate and up", linear(Pass::Norms, m.hidden, 2 * m.intermediate));
            add("down", LinearGlu { backward: true, dims }.into());
        }
    }
    let pair = Shape::Pair { prompt: 512, response: 256 };
    let shapes = match tokens {
        0..1024 => vec![Shape::Causal(tokens / 2), Shape::Pair { prompt: tokens / 4, response: tokens / 8 }],
        1024..2048 => vec![Shape::Causal(512), pair],
        _ => vec![Shape::Causal(512), Shape::Causal(2048), pair],
    };
    for shape in shapes {
        let (heads, kv_heads, head_dim) = (m.heads, m.kv_heads, m.head_dim);
        let trees = (tokens / shape.tokens()).max(1);
        let attention = |backward| Attention { backward, shape, trees, heads, kv_heads, head_dim };
        add("attention", attention(false).into());
        add("attention", attention(true).into());
        if m.gated {
            let rotation = RotaryEmbedding::new(true, rope_dims(m, trees * shape.tokens()));
            add("attention", RotatedAttention { attention: attention(true), rotation }.into());
        }
    }
    if m.gated {
        let rotation = RotaryEmbedding::new(false, rope_dims(m, tokens));
        add("qkv", RotatedLinear { inputs: m.hidden, bias: m.bias, rotation }.into());
    }
    let length = (tokens / 16).clamp(4, 512);
    let cached = AttentionCached {
        sequences: (tokens / 256).max(2),
        prompt: length,
        own: length,
        heads: m.heads,
        kv_heads: m.kv_heads,
        head_dim: m.head_dim,
    };
    add("generation", cached.into());
    let (seqs, glu) = ((tokens / 256).max(2), GluDims { tokens, intermediate: m.intermediate, gelu: None });
    for backward in [false, true] {
        add("norm", Norm { backward, dims: NormDims { tokens, hidden: m.hidden, eps: 1e-6, offset: 0.0 } }.into());
        let dims = EmbeddingDims { tokens, vocab: m.vocab, hidden: m.hidden };
        add("embedding", Embedding::new(backward, dims).into());
        if m.gated {
            add("rotation", RotaryEmbedding::new(backward, rope_dims(m, tokens)).into());
            let (heads, kv_heads, head_dim) = (m.heads, m.kv_heads, m.head_dim);
            let dims = QkNormDims { tokens, heads, kv_heads, head_dim, whole: false, eps: 1e-6, offset: 0.0 };
            // No model of the table normalises its query and key heads, but the op is timed at their sizes.
            add("head norm", QkNorm { backward, dims }.into());
            add("activation", Glu { backward, dims: glu }.into());
            // GELU and LayerNorm are also timed at the sizes of models without them.
            let dims = GeluDims { tokens, intermediate: m.intermediate, form: Gelu::Erf };
            add("plain activation", PlainActivation { backward, dims }.into());
            let dims = LayerNormDims { tokens, hidden: m.hidden, eps: 1e-5 };
            add("layer norm", LayerNorm { backward, dims }.into());
        }
        let dims = RewardDims { tokens, hidden: m.hidden, seqs };
        add("reward head", RewardHead { backward, dims }.into());
        add("sequences", SegmentSum { backward, rows: tokens, seqs }.into());
    }
    if m.gated {
        let dims = ScaleDims { tokens, hidden: m.hidden, factor: 0.5 };
        add("scale", ScaleAdd { dims }.into());
    }
    if m.bias {
        add("qkv", BiasGrad { dims: LinearDims { tokens, inputs: m.hidden, outputs: fused } }.into());
    }
    add("comparisons", PreferenceLoss { groups: (tokens / 1024).max(1) }.into());
}

/// Rotation of whole heads.
fn rope_dims(m: &ModelSizes, tokens: usize) -> RopeDims {
    RopeDims {
        tokens,
        heads: m.heads + m.kv_heads,
        unrotated_heads: m.kv_heads,
        head_dim: m.head_dim,
        rotated: m.head_dim,
        positions: tokens.min(1024),
    }
}

/// Every op at sizes that the reference computes quickly.
#[cfg(test)]
pub fn small(precision: Precision) -> Vec<Work> {
    let size_limits = SizeLimits { parameters: 5000, logits: 1 << 16 };
    let tiny = MODELS[MODELS.len() - 1];
    cases(&tiny, 130, precision, size_limits).into_iter().map(|case| case.work).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backend::OPS;

    #[test]
    fn every_op_is_in_the_table_of_a_gated_model() {
        let size_limits = SizeLimits { parameters: 1 << 20, logits: 1 << 24 };
        for model in MODELS.iter().filter(|m| m.gated && m.bias) {
            let found: BTreeSet<&str> =
                cases(model, 2048, Precision::Bf16, size_limits).iter().map(|case| case.work.op()).collect();
            assert_eq!(found, OPS.iter().copied().collect(), "{}", model.name);
        }
    }

    #[test]
    fn operands_fit_their_contracts() {
        use crate::backend::kernels::Kernels;
        use crate::backend::kernels::device::Properties;
        use crate::backend::kernels::rehearsal::Rehearsal;
        use crate::bench::operand::OperandSet;

        let properties =
            Properties { name: "h".into(), processors: 132, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        let on = Kernels::<_, half::bf16>::new(Rehearsal::of(&properties));
        let size_limits = SizeLimits { parameters: 1 << 29, logits: 1 << 29 };
        for model in &MODELS {
            for tokens in [512, 2048, 32_768] {
                for case in cases(model, tokens, Precision::Bf16, size_limits) {
                    let mut set = OperandSet::new(&on, &case.work.operands()).unwrap();
                    case.work.call(&on, set.cursor()).unwrap();
                }
            }
        }
    }
}
