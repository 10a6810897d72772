// Squared ReLU (arXiv 2109.08668): y = max(x, 0)², and its gradient, dx = 2 max(x, 0) dy in place.
#include "common.cuh"

/// Calls f(i) for the elements of this thread, in a grid-stride loop.
template <class F>
DEVICE void for_each_element(long long n, F f) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        f(i);
    }
}

template <class T>
KERNELS(256, relu_squared_fwd, FOR(T: f32 bf16))(const T* x,  // (tokens, hidden)
                                                 T* y,        // (tokens, hidden)
                                                 int tokens, int hidden) {
    for_each_element((long long)tokens * hidden, [&](long long i) {
        float positive = max_of(to_float(x[i]), 0.0f);
        y[i] = from_float<T>(positive * positive);
    });
}

template <class T>
KERNELS(256, relu_squared_bwd, FOR(T: f32 bf16))(const T* x,  // (tokens, hidden)
                                                 T* dy,       // (tokens, hidden), in place
                                                 int tokens, int hidden) {
    for_each_element((long long)tokens * hidden, [&](long long i) {
        dy[i] = from_float<T>(2.0f * max_of(to_float(x[i]), 0.0f) * to_float(dy[i]));
    });
}
