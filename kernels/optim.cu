// Gradient norm with clip factor and finite check, and AdamW (arXiv 1711.05101), over the flat arena of parameters.
//
// Sums are over slices whose size depends on the arena's length alone, in f64, which no square of an f32 overflows.
// Every value that a step needs is in the control vector on the device; the learning rate alone comes from the host. An
// update whose gradient is not finite touches nothing. Cost: the norm reads the gradient once, but for elements whose norms it
// is given; the update moves every operand once.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

constexpr int OPTIM_THREADS = 256;
/// Entries of the control vector.
EXPORT enum Control : int { LEARNING_RATE, STEP, NORM, CLIP, APPLY, SKIPPED };

/// Sum over the block in one fixed order; thread 0 receives it. `partial` holds a number for each warp.
DEVICE double add_block(double value, double* partial) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        value += shuffle_xor(value, mask);
    }
    if (lane_index() == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    // Every warp's number is there before the first thread adds them.
    sync_block();
    double sum = 0.0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < OPTIM_THREADS / WARP; ++i) {
            sum += partial[i];
        }
    }
    // They have been read before the next sum writes.
    sync_block();
    return sum;
}

/// Adds squares of a slice, `count` elements from `x` on; thread 0 receives the sum.
DEVICE double squares_of(const float* x, long long count, bool aligned, double* partial) {
    constexpr int N = LANE_ELEMENTS<float>;
    double squares[N] = {};
#pragma unroll 4
    for (long long at = (long long)threadIdx.x * N; at < count; at += OPTIM_THREADS * N) {
        float piece[N];
        load_piece(piece, x + at, int(min_of(count - at, (long long)N)), aligned && at + N <= count);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            squares[i] += double(piece[i]) * double(piece[i]);
        }
    }
    return add_block((squares[0] + squares[1]) + (squares[2] + squares[3]), partial);
}

/// sums[k] = sum of the squares of slice k: of the gradient's first elements, then of those from `rest` on, then of norms that
/// stand for those between. Each of the three is cut into slices by itself.
KERNEL(256, grad_squares)(const float* grads,  // (len)
                          const float* norms,  // (told), may be absent
                          double* sums,        // (slices of all three)
                          long long first, long long rest, long long len, long long told,
                          long long slice) {  // elements of a slice, a multiple of 4
    SHARED(double, partial, OPTIM_THREADS / WARP);
    long long before = (first + slice - 1) / slice, after = (len - rest + slice - 1) / slice;
    long long slices = before + after + (told + slice - 1) / slice;
    for (long long k = blockIdx.x; k < slices; k += gridDim.x) {
        bool early = k < before, middle = k < before + after;
        long long at = slice * (early ? k : middle ? k - before : k - before - after);
        const float* x = early ? grads : middle ? grads + rest : norms;
        long long end = early ? first : middle ? len - rest : told;
        double sum = squares_of(x + at, min_of(end - at, slice), wide(x, 0), partial);
        if (threadIdx.x == 0) {
            sums[k] = sum;
        }
    }
}

/// Norm, clip factor min(1, max_norm / (norm + 1e-6)), finite flag and counters from the sums of the slices. One block
/// does the work, whatever the grid.
KERNEL(256, grad_norm)(const double* sums,  // (slices)
                       float* control,      // (CONTROL)
                       int slices, double max_norm) {
    SHARED(double, partial, OPTIM_THREADS / WARP);
    if (blockIdx.x != 0) {
        return;
    }
    // Neighbouring slices to a thread, in ascending order.
    int run = ceil_div(slices, OPTIM_THREADS);
    int end = min_of((int(threadIdx.x) + 1) * run, slices);
    double sum = 0.0;
    for (int k = int(threadIdx.x) * run; k < end; ++k) {
        sum += sums[k];
    }
    sum = add_block(sum, partial);
    if (threadIdx.x != 0) {
        return;
    }
    double norm = sqrt(sum);
    control[NORM] = float(norm);
    if (norm - norm == 0.0) {
        control[STEP] += 1.0f;
        control[APPLY] = 1.0f;
        double clip = max_norm / (norm + 1e-6);
        control[CLIP] = clip < 1.0 ? float(clip) : 1.0f;
    } else {
        control[SKIPPED] += 1.0f;
        control[APPLY] = 0.0f;
        control[CLIP] = 0.0f;
    }
}

/// Scalars of an update.
struct Update {
    float clip, correction2, step_size, keep;
};

/// base^exponent of a whole number that is not negative, by squaring: off by a few units in the last place of an f64.
DEVICE double power(double base, long long exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent /= 2) {
        result = exponent % 2 != 0 ? result * base : result;
        base *= base;
    }
    return result;
}

/// In PyTorch's order of operations: moments, denominator sqrt(v) / sqrt(correction2) + eps, decay, step.
template <class T>
KERNELS(256, adamw, FOR(T: f32 bf16))(const float* control,  // (CONTROL)
                                      const float* grads,    // (len)
                                      float* m,              // (len)
                                      float* v,              // (len)
                                      float* master,         // (len), may be absent: then params are the master
                                      T* params,             // (len)
                                      long long len,
                                      long long decayed,  // elements subject to decay, the first ones
                                      double beta1, double beta2, float eps, double weight_decay) {
    SHARED(Update, shared, 1);
    if (control[APPLY] == 0.0f) {
        return;
    }
    if (threadIdx.x == 0) {
        double rate = double(control[LEARNING_RATE]);
        long long step = (long long)control[STEP];
        shared[0].clip = control[CLIP];
        shared[0].correction2 = float(sqrt(1.0 - power(beta2, step)));
        shared[0].step_size = float(rate / (1.0 - power(beta1, step)));
        shared[0].keep = float(1.0 - rate * weight_decay);
    }
    // The scalars are there before any thread reads them; nothing writes them again.
    sync_block();
    Update u = shared[0];
    float b1 = float(beta1), rest1 = float(1.0 - beta1), b2 = float(beta2), rest2 = float(1.0 - beta2);
    constexpr int N = LANE_ELEMENTS<T>;
    bool aligned = wide(grads, 0) && wide(m, 0) && wide(v, 0) && wide(master, 0) && wide(params, 0);
    long long stride = (long long)gridDim.x * OPTIM_THREADS * N;
    for (long long at = ((long long)blockIdx.x * OPTIM_THREADS + threadIdx.x) * N; at < len; at += stride) {
        int valid = int(min_of(len - at, (long long)N));
        bool by_lane = aligned && valid == N;
        float p[N], g[N], first[N], second[N];
        load_piece(g, grads + at, valid, by_lane);
        load_piece(first, m + at, valid, by_lane);
        load_piece(second, v + at, valid, by_lane);
        if (master != nullptr) {
            load_piece(p, master + at, valid, by_lane);
        } else {
            load_piece(p, params + at, valid, by_lane);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float x = g[i] * u.clip;
            first[i] = b1 * first[i] + rest1 * x;
            second[i] = b2 * second[i] + rest2 * (x * x);
            float denominator = sqrtf(second[i]) / u.correction2 + eps;
            float keep = at + i < decayed ? u.keep : 1.0f;
            p[i] = p[i] * keep - u.step_size * (first[i] / denominator);
        }
        store_piece(m + at, first, valid, by_lane);
        store_piece(v + at, second, valid, by_lane);
        if (master != nullptr) {
            store_piece(master + at, p, valid, by_lane);
        }
        store_piece(params + at, p, valid, by_lane);
    }
}
