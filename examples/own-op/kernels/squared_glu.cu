// Gated unit with a squared ReLU: act = max(gate, 0)² up, and its gradients.
#include "common.cuh"

template <class T>
KERNELS(128, squared_glu_fwd, FOR(T: f32 bf16))(const T* gate,  // (tokens, hidden)
                                                const T* up,    // (tokens, hidden)
                                                T* act,         // (tokens, hidden)
                                                int tokens, int hidden) {
    long long n = (long long)tokens * hidden;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        float open = max_of(to_float(gate[i]), 0.0f);
        act[i] = from_float<T>(open * open * to_float(up[i]));
    }
}

template <class T>
KERNELS(128, squared_glu_bwd, FOR(T: f32 bf16))(const T* gate,  // (tokens, hidden)
                                                const T* up,    // (tokens, hidden)
                                                const T* dact,  // (tokens, hidden)
                                                T* dgate,       // (tokens, hidden)
                                                T* dup,         // (tokens, hidden)
                                                int tokens, int hidden) {
    long long n = (long long)tokens * hidden;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        float open = max_of(to_float(gate[i]), 0.0f), d = to_float(dact[i]);
        dgate[i] = from_float<T>(2.0f * open * to_float(up[i]) * d);
        dup[i] = from_float<T>(open * open * d);
    }
}
