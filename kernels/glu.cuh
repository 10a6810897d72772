// SwiGLU (arXiv 2002.05202) and its gradient for one element. Shared by the stand-alone kernels and
// the fused epilogues (glu.cu, glu_sm90.cu), so that both give the same bits.
#pragma once

#include "common.cuh"
#include "primitives/math.cuh"

/// 1 / (1 + e^-x). The exponential may overflow to infinity, which gives 0. NaN only if x is NaN.
DEVICE float sigmoid(float x) {
    return fast_reciprocal(1.0f + fast_exp2(-LOG2_E * x));
}

/// silu(gate) * up = gate * sigmoid(gate) * up.
DEVICE float glu_value(float gate, float up) {
    return gate * sigmoid(gate) * up;
}

/// Overwrites gate and up with their gradients. With s = sigmoid(gate): dgate = dact up s (1 + gate (1 - s)),
/// dup = dact gate s.
DEVICE void glu_gradient(float dact, float& gate, float& up) {
    float s = sigmoid(gate);
    float dgate = dact * up * (s * (1.0f + gate * (1.0f - s)));
    up = dact * (gate * s);
    gate = dgate;
}
