//! The CPU backend, in f32 and on every unit for bf16, gives the same bits for any number of threads. A row
//! of a result does not depend on the other rows of the call, on its position among them, or on how its path
//! is split into segments.

use common::compare::bits;
use common::paths::{HostPaths, calls};
use common::trees::{HostTree, batches};
use common::{On, Outputs, bf16_units, indices, normal, runs};
use half::bf16;
use mapl::backend::Write;
use mapl::backend::contract::*;
use mapl::backend::cpu::{Cpu, Element, Units};

/// Checks a property in f32, and in bf16 on every unit of [`bf16_units`].
fn on_each_unit(f32: impl Fn(Units), bf16: impl Fn(Units)) {
    f32(Units::F32);
    bf16_units().into_iter().for_each(bf16);
}

fn on_threads<A: Element>(units: Units, threads: usize, run: impl Fn(&On<Cpu<A>>) -> Outputs + Sync) -> Outputs {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| run(&On::new(&Cpu::<A>::on(units), A::PRECISION)))
}

/// Runs with 1, 2 and 3 threads (twice with 3) and requires equal bits.
fn same_bits<A: Element>(units: Units, label: &str, run: impl Fn(&On<Cpu<A>>) -> Outputs + Sync) {
    let expected = on_threads(units, 1, &run);
    for threads in [2, 3, 3] {
        for ((name, got), (_, expected)) in on_threads(units, threads, &run).iter().zip(&expected) {
            bits(&format!("{label}, {name}, {threads} threads, {units}"), got, expected);
        }
    }
}

#[test]
fn bitwise_equal_for_any_number_of_threads() {
    on_each_unit(threads::<f32>, threads::<bf16>);
}

fn threads<A: Element>(units: Units) {
    for (tokens, inputs, outputs) in [(7, 33, 20), (2100, 96, 72), (517, 600, 333)] {
        let d = LinearDims { tokens, inputs, outputs };
        let (x, w) = (normal("x", tokens * inputs, 1.0), normal("w", outputs * inputs, 1.0));
        let (dy, b) = (normal("dy", tokens * outputs, 1.0), normal("b", outputs, 1.0));
        same_bits::<A>(units, "linear_fwd", |on| runs::linear_fwd(on, d, &x, &w, Some(&b)));
        same_bits::<A>(units, "linear_bwd_input", |on| runs::linear_bwd_input(on, d, &dy, &w, &x, Write::Add));
        same_bits::<A>(units, "linear_bwd_weight", |on| runs::linear_bwd_weight(on, d, &dy, &x, &w, Write::Add));
        same_bits::<A>(units, "bias_bwd", |on| runs::bias_bwd(on, d, &dy, &b, Write::Add));
    }
    let (tokens, hidden) = (700, 80);
    let x = normal("x", tokens * hidden, 1.0);
    let rstd: Vec<f64> = normal("rstd", tokens, 1.0).iter().map(|x| x.abs() + 0.5).collect();
    let d = NormDims { tokens, hidden, eps: 1e-6, offset: 0.0 };
    let weight = normal("weight", hidden, 1.0);
    same_bits::<A>(units, "norm_fwd", |on| runs::norm_fwd(on, d, &x, Some(&x), &weight));
    let inputs = runs::NormBwdInputs {
        dy: &x,
        sum: &x,
        rstd: &rstd,
        weight: &weight,
        dsum: &x,
        dweight: &weight,
        write: Write::Add,
    };
    same_bits::<A>(units, "norm_bwd", |on| runs::norm_bwd(on, d, &inputs));
    for whole in [false, true] {
        let d = QkNormDims { tokens, heads: 2, kv_heads: 1, head_dim: 20, whole, eps: 1e-6, offset: 0.0 };
        let (inputs, w) = (&x[..tokens * 60], normal("head weight", d.weights(), 1.0));
        same_bits::<A>(units, "qk_norm_fwd", |on| runs::qk_norm_fwd(on, d, &x, &w, true));
        same_bits::<A>(units, "qk_norm_bwd", |on| runs::qk_norm_bwd(on, d, [inputs, &w, &x, &w], Write::Add));
    }
    let (d, w) = (LayerNormDims { tokens, hidden, eps: 1e-6 }, normal("weight and bias", 2 * hidden, 1.0));
    let stats = normal("stats", 2 * tokens, 1.0);
    same_bits::<A>(units, "layer_norm_fwd", |on| runs::layer_norm_fwd(on, d, &x, &w));
    same_bits::<A>(units, "layer_norm_bwd", |on| runs::layer_norm_bwd(on, d, [&x, &x, &stats, &w, &x, &w], Write::Add));
    let (d, ids) = (EmbeddingDims { tokens, vocab: 300, hidden }, indices("ids", tokens, 300));
    let table = normal("table", 300 * hidden, 1.0);
    same_bits::<A>(units, "embedding_bwd", |on| runs::embedding_bwd(on, d, &ids, &x, &table, Write::Add));

    let d = HeadDims { tokens, hidden, vocab: 1999, rows: 1100, softcap: None };
    let head = normal("head", 1999 * hidden, 0.1);
    let (source, target) = (indices("source", 1100, tokens), indices("target", 1100, 1999));
    same_bits::<A>(units, "head_logprob_fwd", |on| runs::head_logprob_fwd(on, d, &x, &head, &source, &target));
    let (lse, dlogp) = (vec![8.0; 1100], normal("dlogp", 1100, 1.0));
    let inputs = runs::HeadBwdInputs {
        hidden: &x,
        head: &head,
        source: &source,
        target: &target,
        lse: &lse,
        dlogp: &dlogp,
        dhead: &head,
        write: Write::Add,
    };
    same_bits::<A>(units, "head_logprob_bwd", |on| runs::head_logprob_bwd(on, d, &inputs));

    let grads = normal("grads", 100_000, 1.0);
    same_bits::<A>(units, "grad_norm", |on| runs::grad_norm(on, 1.0, &grads, &[0.0; CONTROL]));
    for (name, tree) in batches() {
        let d = tree.dims(4, 2, 32);
        let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
        let do_ = normal("do", d.tokens * d.heads * d.head_dim, 1.0);
        same_bits::<A>(units, &format!("attention_fwd, {name}"), |on| runs::attention_fwd(on, d, &tree, &qkv));
        let forward = on_threads::<A>(units, 1, |on| runs::attention_fwd(on, d, &tree, &qkv));
        same_bits::<A>(units, &format!("attention_bwd, {name}"), |on| {
            runs::attention_bwd(on, d, &tree, &qkv, &do_, &forward)
        });
    }
}

/// Cached attention gives a token the bits that it gets among whole sequences, whatever the spans of its
/// path, the other sequences and the number of threads.
#[test]
fn cached_attention_gives_the_bits_of_whole_sequences() {
    on_each_unit(cached_attention::<f32>, cached_attention::<bf16>);
}

fn cached_attention<A: Element>(units: Units) {
    for (name, paths) in calls() {
        let d = paths.dims(4, 2, 32);
        let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
        let cache = normal("cache", d.slots * d.cache_width(), 1.0);
        same_bits::<A>(units, &format!("attention_cached_fwd, {name}"), |on| {
            runs::attention_cached_fwd(on, d, &paths, &qkv, &cache)
        });
    }
    let backend = Cpu::<A>::on(units);
    let on = On::new(&backend, A::PRECISION);
    for (heads, kv_heads, head_dim, window) in [(2, 2, 16, 900), (6, 2, 64, 900), (7, 1, 20, 900), (6, 2, 16, 90)] {
        let total = 700;
        let whole = HostTree::new().tree(&[(total, None)]);
        let d = whole.windowed((heads, kv_heads, head_dim), window);
        let (width, out, stored) = (d.fused_heads() * head_dim, heads * head_dim, 2 * kv_heads * head_dim);
        let qkv = normal("qkv", total * width, 1.0);
        let expected = &runs::attention_fwd(&on, d, &whole, &qkv)[0].1;
        // Token t lies in row (t + 300) % 700 of the cache, so paths beyond 400 tokens have two spans.
        let mut cache = vec![0.0; (total + 5) * stored];
        for token in 0..total {
            let row = (token + 300) % total;
            cache[row * stored..][..stored].copy_from_slice(&qkv[(token + 1) * width - stored..][..stored]);
        }
        for (end, new) in [(1, 1), (40, 40), (399, 1), (400, 3), (513, 1), (530, 300), (700, 1), (700, 2)] {
            let spans = if end <= 400 { vec![300..300 + end] } else { vec![300..700, 0..end - 400] };
            // Puts a different sequence before the tested one.
            let paths = HostPaths::new(total + 5).sequence(&[total..total + 5], 2).sequence(&spans, new);
            let own = &qkv[(end - new) * width..end * width];
            let both = [&normal("other", 2 * width, 1.0)[..], own].concat();
            let d = paths.windowed((heads, kv_heads, head_dim), window);
            let got = runs::attention_cached_fwd(&on, d, &paths, &both, &cache);
            let label = format!("{heads}/{kv_heads} x {head_dim}, {new} tokens up to {end}, window {window}");
            bits(&label, &got[0].1[2 * out..], &expected[(end - new) * out..end * out]);
        }
    }
}

/// Returns ranges of `total` rows: one row, a few, more than the limit of the small GEMM, and all rows from a
/// start on.
fn pieces(total: usize) -> Vec<std::ops::Range<usize>> {
    let mut ranges = vec![0..1, total - 1..total];
    for start in [0, 1, 5, 40] {
        for length in [1, 2, 3, 7, 31, 33, 34, 64, 100, total] {
            if start < total {
                ranges.push(start..(start + length).min(total));
            }
        }
    }
    ranges
}

#[test]
fn linear_rows_do_not_depend_on_other_rows() {
    on_each_unit(linear_rows::<f32>, linear_rows::<bf16>);
}

fn linear_rows<A: Element>(units: Units) {
    let backend = Cpu::<A>::on(units);
    let on = On::new(&backend, A::PRECISION);
    let total = 150;
    for (inputs, outputs) in [(1, 5), (2, 40), (16, 3), (16, 8), (40, 13), (64, 200), (513, 70), (1030, 48), (48, 600)]
    {
        let (x, w) = (normal("x", total * inputs, 1.0), normal("w", outputs * inputs, 1.0));
        let dims = |tokens, inputs, outputs| LinearDims { tokens, inputs, outputs };
        let all = runs::linear_fwd(&on, dims(total, inputs, outputs), &x, &w, None);
        // The same weights in the layout of the backward GEMM: (inputs, outputs).
        let mut w_t = vec![0.0; w.len()];
        (0..w.len()).for_each(|i| w_t[i % inputs * outputs + i / inputs] = w[i]);
        let back = runs::linear_bwd_input(&on, dims(total, outputs, inputs), &x, &w_t, &all[0].1, Write::Overwrite);
        for range in pieces(total) {
            let label = format!("{inputs} -> {outputs}, rows {range:?}");
            let some = &x[range.start * inputs..range.end * inputs];
            let part = range.start * outputs..range.end * outputs;
            let got = runs::linear_fwd(&on, dims(range.len(), inputs, outputs), some, &w, None);
            bits(&format!("linear_fwd {label}"), &got[0].1, &all[0].1[part.clone()]);
            let d = dims(range.len(), outputs, inputs);
            let got = runs::linear_bwd_input(&on, d, some, &w_t, &got[0].1, Write::Overwrite);
            bits(&format!("linear_bwd_input {label}"), &got[0].1, &back[0].1[part]);
        }
    }
}

#[test]
fn head_rows_do_not_depend_on_other_rows() {
    on_each_unit(head_rows::<f32>, head_rows::<bf16>);
}

fn head_rows<A: Element>(units: Units) {
    let backend = Cpu::<A>::on(units);
    let on = On::new(&backend, A::PRECISION);
    for (hidden, vocab) in [(24, 257), (64, 1999), (600, 700)] {
        let (tokens, rows) = (90, 300);
        let d = HeadDims { tokens, hidden, vocab, rows, softcap: None };
        let (x, head) = (normal("x", tokens * hidden, 1.0), normal("head", vocab * hidden, 0.1));
        let (source, target) = (indices("s", rows, tokens), indices("t", rows, vocab));
        let all = runs::head_logprob_fwd(&on, d, &x, &head, &source, &target);
        let dlogp = normal("dlogp", rows, 1.0);
        for range in pieces(rows) {
            let d = HeadDims { rows: range.len(), ..d };
            let (source, target) = (&source[range.clone()], &target[range.clone()]);
            let got = runs::head_logprob_fwd(&on, d, &x, &head, source, target);
            for k in 0..2 {
                bits(&format!("{} of rows {range:?}", got[k].0), &got[k].1, &all[k].1[range.clone()]);
            }
        }
        // Each head row has its own source, so each row of dhidden belongs to one head row.
        let inputs = |range: std::ops::Range<usize>| {
            let sources: Vec<i32> = range.clone().map(|r| r as i32).collect();
            let inputs = runs::HeadBwdInputs {
                hidden: &x,
                head: &head,
                source: &sources,
                target: &target[range.clone()],
                lse: &all[1].1[range.clone()],
                dlogp: &dlogp[range.clone()],
                dhead: &head,
                write: Write::Overwrite,
            };
            runs::head_logprob_bwd(&on, HeadDims { rows: range.len(), ..d }, &inputs)[0].1.clone()
        };
        let all = inputs(0..tokens);
        for range in pieces(tokens) {
            let part = range.start * hidden..range.end * hidden;
            bits(&format!("dhidden of rows {range:?}"), &inputs(range)[part.clone()], &all[part]);
        }
    }
}

#[test]
fn norm_and_glu_rows_do_not_depend_on_other_rows() {
    on_each_unit(norm_and_glu_rows::<f32>, norm_and_glu_rows::<bf16>);
}

fn norm_and_glu_rows<A: Element>(units: Units) {
    let backend = Cpu::<A>::on(units);
    let on = On::new(&backend, A::PRECISION);
    let (total, width) = (400, 90);
    let (x, weight) = (normal("x", total * width, 1.0), normal("w", width, 1.0));
    let norm = |x: &[f64]| {
        runs::norm_fwd(
            &on,
            NormDims { tokens: x.len() / width, hidden: width, eps: 1e-5, offset: 0.0 },
            x,
            Some(x),
            &weight,
        )
    };
    let norm_bwd = |x: &[f64]| {
        let tokens = x.len() / width;
        let inputs = runs::NormBwdInputs {
            dy: x,
            sum: x,
            rstd: &vec![0.7; tokens],
            weight: &weight,
            dsum: x,
            dweight: &weight,
            write: Write::Add,
        };
        let mut outputs = runs::norm_bwd(&on, NormDims { tokens, hidden: width, eps: 1e-5, offset: 0.0 }, &inputs);
        outputs.truncate(1);
        outputs
    };
    let glu =
        |x: &[f64]| runs::glu_fwd(&on, GluDims { tokens: x.len() / width, intermediate: width / 2, gelu: None }, x);
    type Op<'a> = (&'a str, Box<dyn Fn(&[f64]) -> Outputs + 'a>);
    let ops: [Op; 3] = [("norm", Box::new(norm)), ("norm_bwd", Box::new(norm_bwd)), ("glu", Box::new(glu))];
    for (label, op) in ops {
        let all = op(&x);
        for range in pieces(total) {
            for (k, (name, got)) in op(&x[range.start * width..range.end * width]).iter().enumerate() {
                let per_row = all[k].1.len() / total;
                bits(&format!("{label} {name} {range:?}"), got, &all[k].1[range.start * per_row..range.end * per_row]);
            }
        }
    }
}

#[test]
fn attention_path_is_bitwise_equal_however_it_is_split_into_segments() {
    on_each_unit(split_paths::<f32>, split_paths::<bf16>);
}

fn split_paths<A: Element>(units: Units) {
    let backend = Cpu::<A>::on(units);
    let on = On::new(&backend, A::PRECISION);
    let cases = [(2, 2, 16, 900), (4, 1, 64, 900), (7, 1, 20, 900), (1, 1, 4, 900), (4, 2, 16, 25), (2, 1, 4, 130)];
    for (heads, kv_heads, head_dim, window) in cases {
        for total in [3, 40, 190, 700] {
            let whole = HostTree::new().tree(&[(total, None)]);
            let d = whole.windowed((heads, kv_heads, head_dim), window);
            let qkv = normal("qkv", total * d.fused_heads() * head_dim, 1.0);
            let expected = runs::attention_fwd(&on, d, &whole, &qkv);
            let do_ = normal("do", total * heads * head_dim, 1.0);
            let expected_dqkv = runs::attention_bwd(&on, d, &whole, &qkv, &do_, &expected);
            let dq = |dqkv: &Outputs| -> Vec<f64> {
                let rows = dqkv[0].1.chunks_exact(d.fused_heads() * head_dim);
                rows.flat_map(|row| row[..heads * head_dim].to_vec()).collect()
            };
            for (a, b) in [(1, 1), (total / 3, total / 3), (total - 2, 1)] {
                // Three consecutive segments form the same path.
                let cut = HostTree::new().tree(&[(a, None), (b, Some(0)), (total - a - b, Some(1))]);
                let d = cut.windowed((heads, kv_heads, head_dim), window);
                let got = runs::attention_fwd(&on, d, &cut, &qkv);
                let label = format!(
                    "{heads}/{kv_heads} x {head_dim}, window {window}, {total} tokens cut at {a} and {}",
                    a + b
                );
                for k in 0..2 {
                    bits(&format!("{} of {label}", got[k].0), &got[k].1, &expected[k].1);
                }
                let got = runs::attention_bwd(&on, d, &cut, &qkv, &do_, &expected);
                bits(&format!("dq of {label}"), &dq(&got), &dq(&expected_dqkv));
            }
        }
    }
}

#[test]
fn attention_of_a_sequence_does_not_depend_on_the_rest_of_the_batch() {
    on_each_unit(sequence_in_a_batch::<f32>, sequence_in_a_batch::<bf16>);
}

fn sequence_in_a_batch<A: Element>(units: Units) {
    let backend = Cpu::<A>::on(units);
    let on = On::new(&backend, A::PRECISION);
    let (heads, head_dim) = (2, 32);
    let alone = HostTree::new().tree(&[(37, None)]);
    let among = HostTree::new().tree(&[(5, None), (3, Some(0))]).tree(&[(37, None), (90, Some(0)), (2, Some(0))]);
    let (d, e) = (alone.dims(heads, heads, head_dim), among.dims(heads, heads, head_dim));
    let qkv = normal("qkv", e.tokens * 3 * heads * head_dim, 1.0);
    let width = 3 * heads * head_dim;
    let all = runs::attention_fwd(&on, e, &among, &qkv);
    let one = runs::attention_fwd(&on, d, &alone, &qkv[8 * width..45 * width]);
    bits("o", &one[0].1, &all[0].1[8 * heads * head_dim..45 * heads * head_dim]);
    for head in 0..heads {
        let at = head * e.tokens + 8;
        bits("lse", &one[1].1[head * 37..(head + 1) * 37], &all[1].1[at..at + 37]);
    }
}
