//! Tests every op of every backend against the f64 reference, every op of the reference against
//! finite differences, and every kernel primitive against written-out tables. All of them are one
//! binary, so that it can be copied to a machine with a GPU (tests/gpu).

mod backends {
    mod activation;
    mod attention;
    mod embedding;
    mod head_logprob;
    mod head_logprob_sm90;
    mod head_preference;
    mod linear;
    mod linear_sm90;
    mod logprob;
    mod norm;
    mod optim;
    mod preference;
    mod segment;
}
mod contracts;
mod determinism;
mod gradients;
mod primitives;
