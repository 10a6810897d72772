// Inline PTX that only sm_90a has. In code for other targets it traps; kernels of `<op>_sm90.cu`
// are never launched there.
#pragma once

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define HOPPER(...) __trap()
#endif

#endif
