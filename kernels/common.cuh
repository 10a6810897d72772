// What every kernel file begins with: the KERNEL macro and shared memory, in CUDA and in the emulator's C++.
//
// Under nvcc these are the language's own; under a C++ compiler they come from emulator/. Kernel files hold device code
// alone: no launches, no host API, no inline PTX (that lives in primitives/).
#pragma once

#ifdef __CUDACC__

#include <cstdint>

#define DEVICE __device__ __forceinline__

/// What ptxas is told of a kernel's blocks. A file may define it before, with a second argument of 1, so that registers
/// are not spilled for one more block on a multiprocessor.
#ifndef LAUNCH_BOUNDS
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#endif

/// Begins an entry point: KERNEL(threads, name)(parameters) { ... }, or with marks, KERNEL(threads, name, CLUSTER(2)).
/// build.rs reads these lines and generates the launchers from them; README.md has the grammar.
#define KERNEL(threads, name, ...) \
    extern "C" __global__ void LAUNCH_BOUNDS(threads) MAPL_MARKS(__VA_ARGS__, , , , ) name
#define MAPL_MARKS(first, second, third, fourth, ...) first second third fourth
/// Mark of a kernel whose blocks form clusters of `blocks`; code for older targets has none, and its primitives trap.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER(blocks)
#endif
/// Mark of a kernel whose blocks wait on one another, so that all of them must be on the device at once.
#define CORESIDENT
/// Mark of a kernel whose blocks may begin while the launch before it ends: its threads call wait_for_earlier_launch() before they
/// touch what that may write, or write what that may read (CUDA's programmatic dependent launch).
#define EARLY
/// Mark of a kernel that has a multiprocessor to itself, with its number of threads again. Without it the compiler leaves
/// setmaxnreg out.
#define ALONE(threads) __launch_bounds__(threads, 1)

/// Shared memory of a block.
#define SHARED(type, name, count) __shared__ type name[count]
/// Shared memory whose size the launch gives, aligned for every swizzle.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
/// The same for a size that the kernel knows; the emulator refuses a launch with another.
#define DYNAMIC_SHARED_OF(name, bytes) DYNAMIC_SHARED(name)

/// Waits until every thread of the block is here; what they wrote before is seen after.
DEVICE void sync_block() {
    __syncthreads();
}

/// Ends the launch with an error: the kernel got a value that it does not handle.
DEVICE void trap(const char*) {
    __trap();
}

#else

#include "emulator/device.h"

#define DEVICE inline
#define KERNEL(threads, name, ...) void name
#define SHARED(type, name, count) \
    type* const name = emulator::shared_array<type, count>([] { static const char site = 0; return &site; }())
#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()
#define DYNAMIC_SHARED_OF(name, bytes) unsigned char* const name = emulator::dynamic_shared_of(bytes)
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

#define sync_block() \
    emulator::sync_block([] { static const emulator::Site site{__FILE__, __LINE__}; return &site; }())

inline void trap(const char* why) {
    emulator::fail("%s", why);
}

#endif

/// Begins the template of a family of entry points, after a line `template <class T, int AXIS>`. build.rs generates an entry
/// point for each combination of the values in FOR, which calls the template.
#define KERNELS(threads, name, ...) DEVICE void name
/// Marks a constant or an enum of which build.rs generates a Rust item.
#define EXPORT

#include "bf16.cuh"

/// Threads of a warp.
EXPORT constexpr int WARP = 32;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

/// Quotient rounded up, of numbers that are not negative.
template <class A, class B>
DEVICE constexpr auto ceil_div(A a, B b) {
    return (a + b - 1) / b;
}

template <class T>
DEVICE constexpr T min_of(T a, T b) {
    return a < b ? a : b;
}

template <class T>
DEVICE constexpr T max_of(T a, T b) {
    return a < b ? b : a;
}
