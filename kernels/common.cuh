// First include of every kernel file: the KERNEL macro and shared memory, for CUDA and for the
// emulator.
//
// Under nvcc they map to CUDA; under a C++ compiler they come from emulator/. Kernel files hold
// device code only: no launches, no host API, no inline PTX (which is in primitives/).
#pragma once

#ifdef __CUDACC__

#include <cstdint>

#define DEVICE __device__ __forceinline__

/// Launch bounds of every kernel. A file may define this macro before it includes this header, with a minimum
/// of one block per multiprocessor. ptxas then does not spill registers for the sake of occupancy.
#ifndef LAUNCH_BOUNDS
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#endif

/// Declares an entry point: KERNEL(threads, name)(parameters) { ... }, or with marks,
/// KERNEL(threads, name, CLUSTER(2)). build.rs generates the launchers from these lines; the
/// grammar is in README.md.
#define KERNEL(threads, name, ...) \
    extern "C" __global__ void LAUNCH_BOUNDS(threads) MAPL_MARKS(__VA_ARGS__, , , , ) name
#define MAPL_MARKS(first, second, third, fourth, ...) first second third fourth
/// Mark: blocks form clusters of `blocks`. Code for older targets has no clusters; its primitives
/// trap.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER(blocks)
#endif
/// Mark: blocks wait for one another, so all of them must be resident at once.
#define CORESIDENT
/// Mark: programmatic dependent launch. Blocks may start before the previous launch ends. Threads
/// call wait_for_earlier_launch() before they access memory that it may write, or write memory that
/// it may read.
#define EARLY
/// Mark: one block per multiprocessor. The argument repeats the number of threads. Without this mark
/// the compiler ignores setmaxnreg.
#define ALONE(threads) __launch_bounds__(threads, 1)

/// Static shared memory.
#define SHARED(type, name, count) __shared__ type name[count]
/// Dynamic shared memory, aligned for every swizzle.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
/// Dynamic shared memory of a size that the kernel fixes; the emulator rejects a launch with a different size.
#define DYNAMIC_SHARED_OF(name, bytes) DYNAMIC_SHARED(name)

/// Block barrier; writes before it are visible to all threads of the block after it.
DEVICE void sync_block() {
    __syncthreads();
}

/// Ends the launch with an error, for a parameter value that the kernel does not handle.
DEVICE void trap(const char*) {
    __trap();
}

/// Macros for accesses that the emulator can count (counted.cuh). They are empty on a GPU.
#define ACCESS_LINE
#define PASS_LINE
#define NOTE_ACCESS(address, bytes, store)

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

#define ACCESS_LINE , CALLER_LINE
#define PASS_LINE , file, line
#define NOTE_ACCESS(address, bytes, store) emulator::note_access(address, bytes, store, file, line)

#endif

/// Declares a family of entry points, after a line such as `template <class T, int AXIS>`. For each
/// combination of the values in FOR, build.rs generates an entry point that calls the template.
#define KERNELS(threads, name, ...) DEVICE void name
/// Marks a constant or an enum for which build.rs generates a Rust item.
#define EXPORT

#include "bf16.cuh"

/// Threads of a warp.
EXPORT constexpr int WARP = 32;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

/// Quotient of non-negative numbers, rounded up.
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
