// GELU (arXiv 1606.08415), the activation of MLPs without a gate, in two forms:
//
//   erf    act = x Φ(x);                       slope = Φ(x) + x φ(x)
//   tanh   act = x s, s = sigmoid(x (A + B x²)); slope = s + x s (1 - s) (A + 3 B x²)
//
// (1 + tanh(u)) / 2 is the sigmoid of 2 u. A warp processes chunks of a row in a grid-stride loop; every element
// depends only on its own inputs. Cost: every operand is moved once.
#include "common.cuh"
#include "gelu.cuh"
#include "rows.cuh"

/// Calls f(first, valid) for the chunks of all rows: index of the first element, and number of elements.
template <class T, class F>
DEVICE void for_each_chunk(int tokens, int columns, F f) {
    constexpr int N = VEC_ELEMENTS<T>;
    int chunks = ceil_div(columns, WARP * N);
    for (long long unit = global_warp(); unit < (long long)tokens * chunks; unit += global_warps()) {
        long long token = unit / chunks;
        int i = (int(unit - token * chunks) * WARP + lane_index()) * N;
        if (i < columns) {
            f(token * columns + i, min_of(N, columns - i));
        }
    }
}

template <class T>
KERNELS(128, gelu_fwd, FOR(T: f32 bf16))(const T* x,  // (tokens, intermediate)
                                         T* act,      // (tokens, intermediate)
                                         int tokens, int intermediate, int tanh_form) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(x, intermediate) && vec_aligned(act, intermediate);
    for_each_chunk<T>(tokens, intermediate, [&](long long first, int valid) {
        float value[N];
        load_elements(value, x + first, valid, vectorised);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            value[i] *= gelu_cumulative(value[i], tanh_form != 0);
        }
        store_elements(act + first, value, valid, vectorised);
    });
}

template <class T>
KERNELS(128, gelu_bwd, FOR(T: f32 bf16))(const T* x,  // (tokens, intermediate)
                                         T* dact,     // (tokens, intermediate), in place
                                         int tokens, int intermediate, int tanh_form) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(x, intermediate) && vec_aligned(dact, intermediate);
    for_each_chunk<T>(tokens, intermediate, [&](long long first, int valid) {
        float value[N], d[N];
        load_elements(value, x + first, valid, vectorised);
        load_elements(d, dact + first, valid, vectorised);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            d[i] *= gelu_slope(value[i], tanh_form != 0);
        }
        store_elements(dact + first, d, valid, vectorised);
    });
}
