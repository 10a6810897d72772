//! Every op on every backend rejects an argument of wrong length. The error names the op and the
//! argument.

mod attention;
mod elementwise;
mod head_preference;
mod preference;
mod segment;

use std::cell::Cell;
use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, OPS, View, ViewMut, Write};
use mapl::{Error, Result};

/// Buffers longer than any argument below, filled with 0.
const LEN: usize = 256;

/// Argument lengths of one call. The length with index `broken` is off by one.
struct Lengths {
    broken: Cell<usize>,
    seen: Cell<usize>,
    name: Cell<&'static str>,
}

impl Lengths {
    /// Correct lengths of all arguments.
    fn exact() -> Self {
        Self { broken: Cell::new(usize::MAX), seen: Cell::new(0), name: Cell::new("") }
    }

    fn of(&self, name: &'static str, len: usize) -> usize {
        let this = self.seen.get();
        self.seen.set(this + 1);
        if this == self.broken.get() {
            self.name.set(name);
            return len + 1;
        }
        len
    }
}

/// Calls an op with correct lengths, then once for each argument with that length broken.
fn probe(op: &'static str, covered: &mut BTreeSet<&'static str>, call: impl Fn(&Lengths) -> Result<()>) {
    covered.insert(op);
    let lengths = Lengths::exact();
    call(&lengths).unwrap_or_else(|e| panic!("{op} with correct lengths: {e}"));
    let arguments = lengths.seen.replace(0);
    assert!(arguments > 0, "{op} checks no argument length");
    for broken in 0..arguments {
        lengths.broken.set(broken);
        lengths.seen.set(0);
        match call(&lengths) {
            Err(Error::Contract { op: named, what, expected, got }) => {
                assert_eq!((named, what), (op, lengths.name.get()));
                assert!(!expected.is_empty() && expected != got, "{op}.{what}: expected {expected}, got {got}");
            }
            other => panic!("{op} with {} one too long: {other:?}", lengths.name.get()),
        }
    }
}

fn act<B: Backend>(b: &B) -> B::Act {
    b.zeros_act(LEN).unwrap()
}

fn acc<B: Backend>(b: &B) -> B::Acc {
    b.zeros_acc(LEN).unwrap()
}

fn every_op<B: Backend>(b: &B) {
    let mut covered = BTreeSet::new();
    let c = &mut covered;
    let (a, s, i) = (&act(b), &acc(b), &b.zeros_idx(LEN).unwrap());
    let w = Write::Overwrite;

    let d = EmbeddingDims { tokens: 3, vocab: 5, hidden: 4 };
    probe("embedding_fwd", c, |l| {
        let mut x = act(b);
        b.embedding_fwd(EmbeddingFwd {
            dims: d,
            ids: View::first(i, l.of("ids", 3)),
            table: View::first(a, l.of("table", 20)),
            x: ViewMut::first(&mut x, l.of("x", 12)),
        })
    });
    probe("embedding_bwd", c, |l| {
        let mut dtable = acc(b);
        b.embedding_bwd(EmbeddingBwd {
            dims: d,
            dx: View::first(a, l.of("dx", 12)),
            runs: Runs {
                order: View::first(i, l.of("runs.order", 3)),
                offsets: View::first(i, l.of("runs.offsets", 3)),
                keys: View::first(i, 2),
            },
            dtable: ViewMut::first(&mut dtable, l.of("dtable", 20)),
            write: w,
        })
    });

    let d = NormDims { tokens: 3, hidden: 4, eps: 1e-6, offset: 0.0 };
    probe("norm_fwd", c, |l| {
        let (mut sum, mut y, mut rstd) = (act(b), act(b), acc(b));
        b.norm_fwd(NormFwd {
            dims: d,
            x: View::first(a, l.of("x", 12)),
            residual: Some(View::first(a, l.of("residual", 12))),
            weight: View::first(a, l.of("weight", 4)),
            base: Some(View::first(a, l.of("base", 12))),
            sum: Some(ViewMut::first(&mut sum, l.of("sum", 12))),
            y: ViewMut::first(&mut y, l.of("y", 12)),
            rstd: ViewMut::first(&mut rstd, l.of("rstd", 3)),
        })
    });
    probe("norm_bwd", c, |l| {
        let (mut dsum, mut dweight) = (act(b), acc(b));
        b.norm_bwd(NormBwd {
            dims: d,
            dy: View::first(a, l.of("dy", 12)),
            sum: View::first(a, l.of("sum", 12)),
            rstd: View::first(s, l.of("rstd", 3)),
            weight: View::first(a, l.of("weight", 4)),
            dsum: ViewMut::first(&mut dsum, l.of("dsum", 12)),
            dsum_write: w,
            dweight: ViewMut::first(&mut dweight, l.of("dweight", 4)),
            dweight_write: w,
        })
    });

    let d = QkNormDims { tokens: 3, heads: 2, kv_heads: 1, head_dim: 4, whole: false, eps: 1e-6, offset: 0.0 };
    probe("qk_norm_fwd", c, |l| {
        let (mut x, mut qkv) = (act(b), act(b));
        b.qk_norm_fwd(QkNormFwd {
            dims: d,
            weight: View::first(a, l.of("weight", 8)),
            x: Some(ViewMut::first(&mut x, l.of("x", 36))),
            qkv_in_place: ViewMut::first(&mut qkv, l.of("qkv", 48)),
        })
    });
    probe("qk_norm_bwd", c, |l| {
        let (mut dqkv, mut dweight) = (act(b), acc(b));
        b.qk_norm_bwd(QkNormBwd {
            dims: d,
            x: View::first(a, l.of("x", 36)),
            weight: View::first(a, l.of("weight", 8)),
            dqkv_in_place: ViewMut::first(&mut dqkv, l.of("dqkv", 48)),
            dweight: ViewMut::first(&mut dweight, l.of("dweight", 8)),
            write: w,
        })
    });

    let d = LinearDims { tokens: 3, inputs: 4, outputs: 5 };
    probe("linear_fwd", c, |l| {
        let mut y = act(b);
        b.linear_fwd(LinearFwd {
            dims: d,
            x: View::first(a, l.of("x", 12)),
            weight: View::first(a, l.of("weight", 20)),
            bias: Some(View::first(a, l.of("bias", 5))),
            residual: Some(View::first(a, l.of("residual", 15))),
            y: ViewMut::first(&mut y, l.of("y", 15)),
        })
    });
    probe("linear_bwd_input", c, |l| {
        let mut dx = act(b);
        b.linear_bwd_input(LinearBwdInput {
            dims: d,
            dy: View::first(a, l.of("dy", 15)),
            weight: View::first(a, l.of("weight", 20)),
            dx: ViewMut::first(&mut dx, l.of("dx", 12)),
            write: w,
        })
    });
    probe("linear_bwd_weight", c, |l| {
        let (mut dweight, mut norms) = (acc(b), acc(b));
        b.linear_bwd_weight(LinearBwdWeight {
            dims: d,
            dy: View::first(a, l.of("dy", 15)),
            x: View::first(a, l.of("x", 12)),
            dweight: ViewMut::first(&mut dweight, l.of("dweight", 20)),
            write: w,
            norms: Some(ViewMut::first(&mut norms, l.of("norms", 1))),
        })
    });
    probe("bias_bwd", c, |l| {
        let mut dbias = acc(b);
        let dy = View::first(a, l.of("dy", 15));
        b.bias_bwd(BiasBwd { dims: d, dy, dbias: ViewMut::first(&mut dbias, l.of("dbias", 5)), write: w })
    });

    for op in ["rope_fwd", "rope_bwd"] {
        probe(op, c, |l| {
            let mut qkv = act(b);
            let args = Rope {
                dims: RopeDims { tokens: 3, heads: 2, unrotated_heads: 1, head_dim: 4, rotated: 4, positions: 6 },
                positions: View::first(i, l.of("positions", 3)),
                cos: View::first(s, l.of("cos", 12)),
                sin: View::first(s, l.of("sin", 12)),
                qkv_in_place: ViewMut::first(&mut qkv, l.of("qkv", 36)),
            };
            let result = if op == "rope_fwd" { b.rope_fwd(args) } else { b.rope_bwd(args) };
            // Both directions share one contract, and its errors name the op "rope". `probe`
            // expects the name in the op list.
            result.map_err(|e| match e {
                Error::Contract { op: "rope", what, expected, got } => Error::Contract { op, what, expected, got },
                other => other,
            })
        });
    }

    let rotation = |l: &Lengths| Rotation {
        dims: RopeDims { tokens: 3, heads: 2, unrotated_heads: 1, head_dim: 4, rotated: 4, positions: 6 },
        positions: View::first(i, l.of("positions", 3)),
        cos: View::first(s, l.of("cos", 12)),
        sin: View::first(s, l.of("sin", 12)),
    };
    probe("linear_rope_fwd", c, |l| {
        let mut y = act(b);
        let linear = LinearFwd {
            dims: LinearDims { tokens: 3, inputs: 4, outputs: 12 },
            x: View::first(a, l.of("x", 12)),
            weight: View::first(a, l.of("weight", 48)),
            bias: Some(View::first(a, l.of("bias", 12))),
            residual: Some(View::first(a, l.of("residual", 36))),
            y: ViewMut::first(&mut y, l.of("y", 36)),
        };
        b.linear_rope_fwd(LinearRopeFwd { linear, rotation: rotation(l) })
    });

    let d = GluDims { tokens: 3, intermediate: 4, gelu: None };
    probe("glu_fwd", c, |l| {
        let mut out = act(b);
        let gate_up = View::first(a, l.of("gate_up", 24));
        b.glu_fwd(GluFwd { dims: d, gate_up, act: ViewMut::first(&mut out, l.of("act", 12)) })
    });
    probe("glu_bwd", c, |l| {
        let mut out = act(b);
        b.glu_bwd(GluBwd {
            dims: d,
            dact: View::first(a, l.of("dact", 12)),
            gate_up: View::first(a, l.of("gate_up", 24)),
            dgate_up: ViewMut::first(&mut out, l.of("dgate_up", 24)),
        })
    });

    let d = LinearGluDims { tokens: 3, hidden: 5, intermediate: 4 };
    probe("linear_glu_fwd", c, |l| {
        let (mut gate_up, mut out) = (act(b), act(b));
        b.linear_glu_fwd(LinearGluFwd {
            dims: d,
            x: View::first(a, l.of("x", 15)),
            weight: View::first(a, l.of("weight", 40)),
            gate_up: Some(ViewMut::first(&mut gate_up, l.of("gate_up", 24))),
            act: ViewMut::first(&mut out, l.of("act", 12)),
        })
    });
    probe("linear_glu_bwd", c, |l| {
        let mut out = act(b);
        b.linear_glu_bwd(LinearGluBwd {
            dims: d,
            dy: View::first(a, l.of("dy", 15)),
            weight: View::first(a, l.of("weight", 20)),
            gate_up: View::first(a, l.of("gate_up", 24)),
            dgate_up: ViewMut::first(&mut out, l.of("dgate_up", 24)),
        })
    });

    attention::every_argument(b, c);
    head(b, c);
    elementwise::every_argument(b, c);
    segment::every_argument(b, c);
    preference::every_argument(b, c);
    head_preference::every_argument(b, c);

    probe("grad_norm", c, |l| {
        let mut control = acc(b);
        b.grad_norm(GradNorm {
            len: 7,
            max_norm: 1.0,
            grads: View::first(s, l.of("grads", 7)),
            known: None,
            control: ViewMut::first(&mut control, l.of("control", CONTROL)),
        })
    });
    probe("adamw", c, |l| {
        let (mut m, mut v, mut params) = (acc(b), acc(b), act(b));
        b.adamw(AdamW {
            len: 7,
            decayed: 3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            control: View::first(s, l.of("control", CONTROL)),
            grads: View::first(s, l.of("grads", 7)),
            m: ViewMut::first(&mut m, l.of("m", 7)),
            v: ViewMut::first(&mut v, l.of("v", 7)),
            master: None,
            params: ViewMut::first(&mut params, l.of("params", 7)),
        })
    });

    assert_eq!(covered, OPS.iter().copied().collect(), "some ops of the list were not probed");
}

fn head<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let (a, s, i) = (&act(b), &acc(b), &b.zeros_idx(LEN).unwrap());
    let w = Write::Overwrite;
    let d = HeadDims { tokens: 3, hidden: 4, vocab: 6, rows: 2, softcap: None };
    probe("head_logprob_fwd", c, |l| {
        let [mut logp, mut lse, mut stats] = [acc(b), acc(b), acc(b)];
        b.head_logprob_fwd(HeadLogprobFwd {
            dims: d,
            hidden: View::first(a, l.of("hidden", 12)),
            head: View::first(a, l.of("head", 24)),
            source: View::first(i, l.of("source", 2)),
            target: View::first(i, l.of("target", 2)),
            logp: ViewMut::first(&mut logp, l.of("logp", 2)),
            lse: ViewMut::first(&mut lse, l.of("lse", 2)),
            stats: Some(ViewMut::first(&mut stats, l.of("stats", 2 * ROW_STATS))),
        })
    });
    probe("head_logprob_bwd", c, |l| {
        let (mut dhidden, mut dhead) = (act(b), acc(b));
        b.head_logprob_bwd(HeadLogprobBwd {
            dims: d,
            hidden: View::first(a, l.of("hidden", 12)),
            head: View::first(a, l.of("head", 24)),
            source: View::first(i, l.of("source", 2)),
            target: View::first(i, l.of("target", 2)),
            runs: Runs {
                order: View::first(i, l.of("runs.order", 2)),
                offsets: View::first(i, l.of("runs.offsets", 2)),
                keys: View::first(i, 1),
            },
            lse: View::first(s, l.of("lse", 2)),
            dlogp: View::first(s, l.of("dlogp", 2)),
            dhidden: ViewMut::first(&mut dhidden, l.of("dhidden", 12)),
            dhead: Some(ViewMut::first(&mut dhead, l.of("dhead", 24))),
            dhead_write: w,
        })
    });
    probe("logprob_fwd", c, |l| {
        let (mut logp, mut lse) = (acc(b), acc(b));
        b.logprob_fwd(LogprobFwd {
            rows: 2,
            vocab: 6,
            logits: View::first(a, l.of("logits", 12)),
            target: View::first(i, l.of("target", 2)),
            logp: ViewMut::first(&mut logp, l.of("logp", 2)),
            lse: ViewMut::first(&mut lse, l.of("lse", 2)),
        })
    });
    probe("logprob_bwd", c, |l| {
        let mut logits = act(b);
        b.logprob_bwd(LogprobBwd {
            rows: 2,
            vocab: 6,
            target: View::first(i, l.of("target", 2)),
            lse: View::first(s, l.of("lse", 2)),
            dlogp: View::first(s, l.of("dlogp", 2)),
            logits_to_dlogits: ViewMut::first(&mut logits, l.of("logits", 12)),
        })
    });
    let d = RewardDims { tokens: 3, hidden: 4, seqs: 1 };
    probe("reward_head_fwd", c, |l| {
        let mut score = acc(b);
        b.reward_head_fwd(RewardHeadFwd {
            dims: d,
            hidden: View::first(a, l.of("hidden", 12)),
            weight: View::first(a, l.of("weight", 4)),
            rows: View::first(i, l.of("rows", 1)),
            score: ViewMut::first(&mut score, l.of("score", 1)),
        })
    });
    probe("reward_head_bwd", c, |l| {
        let (mut dhidden, mut dweight) = (act(b), acc(b));
        b.reward_head_bwd(RewardHeadBwd {
            dims: d,
            hidden: View::first(a, l.of("hidden", 12)),
            weight: View::first(a, l.of("weight", 4)),
            rows: View::first(i, l.of("rows", 1)),
            dscore: View::first(s, l.of("dscore", 1)),
            dhidden: ViewMut::first(&mut dhidden, l.of("dhidden", 12)),
            dweight: ViewMut::first(&mut dweight, l.of("dweight", 4)),
            dweight_write: w,
        })
    });
}

#[test]
fn cpu_rejects_wrong_lengths() {
    every_op(&Cpu::new());
    every_op(&Cpu::<half::bf16>::default());
}

#[test]
fn reference_rejects_wrong_lengths() {
    every_op(&Reference);
}

#[test]
fn invalid_sizes_are_rejected() {
    let b = Cpu::new();
    let (a, s, i) = (act(&b), acc(&b), b.zeros_idx(LEN).unwrap());
    let mut qkv = act(&b);
    let odd = b.rope_fwd(Rope {
        dims: RopeDims { tokens: 1, heads: 1, unrotated_heads: 0, head_dim: 3, rotated: 3, positions: 1 },
        positions: View::first(&i, 1),
        cos: View::first(&s, 1),
        sin: View::first(&s, 1),
        qkv_in_place: ViewMut::first(&mut qkv, 3),
    });
    assert!(matches!(odd, Err(Error::Contract { what: "rotated", .. })), "{odd:?}");
    // It is an error if the tokens or the width of the rotation differ from those of the linear layer.
    let rotated = |tokens, heads| {
        let mut y = act(&b);
        let linear = LinearFwd {
            dims: LinearDims { tokens: 2, inputs: 1, outputs: 6 },
            x: View::first(&a, 2),
            weight: View::first(&a, 6),
            bias: None,
            residual: None,
            y: ViewMut::first(&mut y, 12),
        };
        let dims = RopeDims { tokens, heads, unrotated_heads: 1, head_dim: 2, rotated: 2, positions: 1 };
        let (positions, table) = (View::first(&i, tokens), View::first(&s, 1));
        b.linear_rope_fwd(LinearRopeFwd { linear, rotation: Rotation { dims, positions, cos: table, sin: table } })
    };
    assert!(rotated(2, 2).is_ok());
    for (result, what) in [(rotated(3, 2), "rotation.tokens"), (rotated(2, 1), "rotation.width")] {
        let Err(Error::Contract { op: "linear_rope_fwd", what: named, .. }) = result else { panic!("{result:?}") };
        assert_eq!(named, what);
    }
    let (mut y, mut rstd) = (act(&b), acc(&b));
    let alone = b.norm_fwd(NormFwd {
        dims: NormDims { tokens: 1, hidden: 4, eps: 1e-6, offset: 0.0 },
        x: View::first(&a, 4),
        residual: Some(View::first(&a, 4)),
        weight: View::first(&a, 4),
        base: None,
        sum: None,
        y: ViewMut::first(&mut y, 4),
        rstd: ViewMut::first(&mut rstd, 1),
    });
    assert!(matches!(alone, Err(Error::Contract { what: "sum", .. })), "{alone:?}");
    let mut control = acc(&b);
    let zero = b.grad_norm(GradNorm {
        len: 1,
        max_norm: 0.0,
        grads: View::first(&s, 1),
        known: None,
        control: ViewMut::first(&mut control, CONTROL),
    });
    assert!(matches!(zero, Err(Error::Contract { what: "max_norm", .. })), "{zero:?}");
    let beyond = b.grad_norm(GradNorm {
        len: 1,
        max_norm: 1.0,
        grads: View::first(&s, 1),
        known: Some(KnownNorms { range: 0..2, norms: View::first(&s, 1) }),
        control: ViewMut::first(&mut control, CONTROL),
    });
    assert!(matches!(beyond, Err(Error::Contract { what: "known", .. })), "{beyond:?}");
}
