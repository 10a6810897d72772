// GELU (arXiv 1606.08415) and its slope for one element, in the forms of gelu.cu. Shared by MLPs without
// a gate (gelu.cu) and with one (glu.cu).
#pragma once

#include "common.cuh"

/// sqrt(1 / 2) and 1 / sqrt(2 pi).
constexpr float GELU_ROOT = 0.70710678f, GELU_DENSITY = 0.39894228f;
/// 2 sqrt(2 / pi), and its product with 0.044715.
constexpr float GELU_A = 1.5957692f, GELU_B = 0.071354816f;

/// Φ(x) or its tanh approximation. For negative x it is computed from the tail, so that nothing cancels.
DEVICE float gelu_cumulative(float x, bool tanh_form) {
    if (tanh_form) {
        return 1.0f / (1.0f + expf(-x * (GELU_A + GELU_B * x * x)));
    }
    return 0.5f * erfcf(-x * GELU_ROOT);
}

DEVICE float gelu_slope(float x, bool tanh_form) {
    float s = gelu_cumulative(x, tanh_form);
    if (tanh_form) {
        return s + x * s * (1.0f - s) * (GELU_A + 3.0f * GELU_B * x * x);
    }
    return s + x * (GELU_DENSITY * expf(-0.5f * x * x));
}
