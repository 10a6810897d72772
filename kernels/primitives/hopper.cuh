// Instructions that only sm_90a has. In code for other targets they trap: a kernel of `<op>_sm90.cu` is never chosen
// there.
#pragma once

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define HOPPER(...) __trap()
#endif

#endif
