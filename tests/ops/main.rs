//! Tests every op of every backend against the f64 reference, every op of the reference against finite
//! differences, and every kernel primitive against explicit tables. All of them are one binary, so that it
//! can be copied to a machine with a GPU (tests/gpu).

mod backends {
    mod attention;
    mod attention_cached;
    mod attention_sm90;
    mod embedding;
    mod gelu;
    mod glu;
    mod head;
    mod head_logits;
    mod head_preference;
    mod head_sm90;
    mod head_stats;
    mod layer_norm;
    mod linear;
    mod linear_sm90;
    mod norm;
    mod optim;
    mod preference;
    mod reward;
    mod rope;
    mod rope_sm90;
    mod scale;
    mod segment;
}
mod contracts;
mod determinism;
mod gradients;
mod primitives;
