// Special function unit instructions. PTX ISA: ex2, rcp.
#pragma once

#ifdef __CUDACC__

/// 2^x within 2 ulp; subnormal results are flushed to 0.
DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// 1 / x within 1 ulp; 0 for infinities.
DEVICE float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

#include <cmath>

inline float fast_exp2(float x) {
    return std::exp2(x);
}

inline float fast_reciprocal(float x) {
    return 1.0f / x;
}

#endif
