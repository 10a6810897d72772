// The gated activation (SwiGLU, arXiv 2002.05202) of one element and its gradient: shared by the kernels of the activation
// alone (activation.cu) and by the epilogues of the products around it (matmul.cu), which so give the same bits.
#pragma once

#include "common.cuh"
#include "primitives/math.cuh"

/// 1 / (1 + e^-x). The exponential may overflow to infinity, which gives 0; no step of it is NaN unless x is.
DEVICE float sigmoid(float x) {
    return fast_reciprocal(1.0f + fast_exp2(-LOG2_E * x));
}

/// gate sigmoid(gate) up.
DEVICE float glu_value(float gate, float up) {
    return gate * sigmoid(gate) * up;
}

/// With s = sigmoid(gate): dgate = dact up s (1 + gate (1 - s)), dup = dact gate s. Written over gate and up.
DEVICE void glu_gradient(float dact, float& gate, float& up) {
    float s = sigmoid(gate);
    float dgate = dact * up * (s * (1.0f + gate * (1.0f - s)));
    up = dact * (gate * s);
    gate = dgate;
}
