// Scales rows and adds rows: x = factor x + addend, in place.
//
// A warp processes chunks of a row in a grid-stride loop; every element depends only on its own inputs. Cost:
// every operand is moved once.
#include "common.cuh"
#include "rows.cuh"

template <class T>
KERNELS(128, scale, FOR(T: f32 bf16))(const T* addend,  // (tokens, hidden), may be null
                                      T* x,             // (tokens, hidden), in place
                                      int tokens, int hidden, float factor) {
    constexpr int N = VEC_ELEMENTS<T>;
    bool vectorised = vec_aligned(x, hidden) && vec_aligned(addend, hidden);
    int chunks = ceil_div(hidden, WARP * N);
    for (long long unit = global_warp(); unit < (long long)tokens * chunks; unit += global_warps()) {
        long long token = unit / chunks;
        int h = (int(unit - token * chunks) * WARP + lane_index()) * N;
        if (h >= hidden) {
            continue;
        }
        int valid = min_of(N, hidden - h);
        float value[N], more[N] = {};
        load_elements(value, x + token * hidden + h, valid, vectorised);
        if (addend != nullptr) {
            load_elements(more, addend + token * hidden + h, valid, vectorised);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            value[i] = factor * value[i] + more[i];
        }
        store_elements(x + token * hidden + h, value, valid, vectorised);
    }
}
