// Global gradient norm with clipping and a finite check, and AdamW (arXiv 1711.05101), over the
// flat arena of parameters.
//
//   grad_squares: sums[k] = sum of squares of slice k of the gradient (f64)
//   grad_norm:    norm = sqrt(sum of sums); control: clip = min(1, max_norm / (norm + 1e-6)),
//                 step += 1, apply = 1; if the norm is not finite: skipped += 1, apply = 0
//   adamw, if apply:
//     g = clip grad; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g²
//     p = p (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//     decay is 0 from element `decayed` on
//
// Departures from PyTorch's clip_grad_norm_ and AdamW:
//   - Elements with given patch norms (linear_patches.cuh) are not read again; the norms replace them.
//   - Sums are over slices, in f64, so that the square of an f32 cannot overflow. The slice size depends only
//     on the arena's length.
//   - Step, clip factor and finite flag stay on the device, in the control vector; the host supplies
//     only the learning rate. The sequence therefore needs no host synchronisation.
//   - A gradient that is not finite leaves parameters and moments untouched.
//
// Cost: the norm reads the gradient once, except elements with given norms; the update moves every
// operand once.
#include "common.cuh"
#include "primitives/warp.cuh"
#include "rows.cuh"

constexpr int OPTIM_THREADS = 256;
/// Entries of the control vector.
EXPORT enum Control : int { LEARNING_RATE, STEP, NORM, CLIP, APPLY, SKIPPED };

/// Block-wide sum in a fixed order, valid in thread 0. `partial` holds one number per warp.
DEVICE double add_block(double value, double* partial) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        value += shuffle_xor(value, mask);
    }
    if (lane_index() == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    // Waits until all warps' sums are written.
    sync_block();
    double sum = 0.0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < OPTIM_THREADS / WARP; ++i) {
            sum += partial[i];
        }
    }
    // Waits until thread 0 has read the sums, which the next call overwrites.
    sync_block();
    return sum;
}

/// Sum of squares of a slice, `count` elements from `x` on, valid in thread 0.
DEVICE double squares_of(const float* x, long long count, bool aligned, double* partial) {
    constexpr int N = VEC_ELEMENTS<float>;
    double squares[N] = {};
#pragma unroll 4
    for (long long at = (long long)threadIdx.x * N; at < count; at += OPTIM_THREADS * N) {
        float piece[N];
        load_elements(piece, x + at, int(min_of(count - at, (long long)N)), aligned && at + N <= count);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            squares[i] += double(piece[i]) * double(piece[i]);
        }
    }
    return add_block((squares[0] + squares[1]) + (squares[2] + squares[3]), partial);
}

/// sums[k] = sum of squares of slice k. Three ranges are sliced separately, in this order: gradient
/// elements below `first`, gradient elements from `rest` on, and the `known` patch norms that
/// replace the elements between.
KERNEL(256, grad_squares)(const float* grads,  // (len)
                          const float* norms,  // (known), may be null
                          double* sums,        // (slices of all three)
                          long long first, long long rest, long long len, long long known,
                          long long slice) {  // elements of a slice, a multiple of 4
    SHARED(double, partial, OPTIM_THREADS / WARP);
    long long first_slices = (first + slice - 1) / slice, rest_slices = (len - rest + slice - 1) / slice;
    long long slices = first_slices + rest_slices + (known + slice - 1) / slice;
    for (long long k = blockIdx.x; k < slices; k += gridDim.x) {
        bool in_first = k < first_slices, in_rest = k < first_slices + rest_slices;
        long long at = slice * (in_first ? k : in_rest ? k - first_slices : k - first_slices - rest_slices);
        const float* x = in_first ? grads : in_rest ? grads + rest : norms;
        long long end = in_first ? first : in_rest ? len - rest : known;
        double sum = squares_of(x + at, min_of(end - at, slice), vec_aligned(x, 0), partial);
        if (threadIdx.x == 0) {
            sums[k] = sum;
        }
    }
}

/// Computes norm, clip factor, finite flag and counters from the slice sums. Only block 0 does any
/// work.
KERNEL(256, grad_norm)(const double* sums,  // (slices)
                       float* control,      // (6): the entries of Control
                       int slices, double max_norm) {
    SHARED(double, partial, OPTIM_THREADS / WARP);
    if (blockIdx.x != 0) {
        return;
    }
    // Each thread adds a contiguous run of slices, in ascending order.
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
    // The condition is false for infinity and NaN.
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

/// Scalars of an update: clip factor, sqrt(1 - beta2^t), lr / (1 - beta1^t), 1 - lr decay.
struct Update {
    float clip, correction2, step_size, keep;
};

/// base^exponent for exponent >= 0, by squaring; accurate to a few ulp of f64.
DEVICE double power(double base, long long exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent /= 2) {
        result = exponent % 2 != 0 ? result * base : result;
        base *= base;
    }
    return result;
}

/// x = `valid` elements from `from` on, four if `vectorised`; the others become 0.
template <class T>
DEVICE void load_up_to_four(float (&x)[4], const T* from, int valid, bool vectorised) {
    if (vectorised) {
        load_four(x, from);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[i] = i < valid ? to_float(from[i]) : 0.0f;
    }
}

/// Inverse of load_up_to_four: rounds to T.
template <class T>
DEVICE void store_up_to_four(T* to, const float (&x)[4], int valid, bool vectorised) {
    if (vectorised) {
        store_four(to, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i < valid) {
            to[i] = from_float<T>(x[i]);
        }
    }
}

/// AdamW in PyTorch's order of operations: moments, denominator, decay, step.
template <class T>
KERNELS(256, adamw, FOR(T: f32 bf16))(const float* control,  // (6): the entries of Control
                                      const float* grads,    // (len)
                                      float* m,              // (len)
                                      float* v,              // (len)
                                      float* master,         // (len), may be null: then params are updated directly
                                      T* params,             // (len)
                                      long long len,
                                      long long decayed,  // number of elements subject to decay, which come first
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
    // Waits until the scalars are written. Nothing overwrites them, so there is no second barrier.
    sync_block();
    Update u = shared[0];
    float b1 = float(beta1), rest1 = float(1.0 - beta1), b2 = float(beta2), rest2 = float(1.0 - beta2);
    bool aligned = vec_aligned(grads, 0) && vec_aligned(m, 0) && vec_aligned(v, 0) && vec_aligned(master, 0) &&
                   vec_aligned(params, 0);
    // Each thread updates four elements at once, so a warp's access to an f32 array is contiguous.
    long long stride = (long long)gridDim.x * OPTIM_THREADS * 4;
    for (long long at = ((long long)blockIdx.x * OPTIM_THREADS + threadIdx.x) * 4; at < len; at += stride) {
        int valid = int(min_of(len - at, 4LL));
        bool vectorised = aligned && valid == 4;
        float p[4], g[4], first[4], second[4];
        load_up_to_four(g, grads + at, valid, vectorised);
        load_up_to_four(first, m + at, valid, vectorised);
        load_up_to_four(second, v + at, valid, vectorised);
        if (master != nullptr) {
            load_up_to_four(p, master + at, valid, vectorised);
        } else {
            load_up_to_four(p, params + at, valid, vectorised);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = g[i] * u.clip;
            first[i] = b1 * first[i] + rest1 * x;
            second[i] = b2 * second[i] + rest2 * (x * x);
            float denominator = sqrtf(second[i]) / u.correction2 + eps;
            float keep = at + i < decayed ? u.keep : 1.0f;
            p[i] = p[i] * keep - u.step_size * (first[i] / denominator);
        }
        store_up_to_four(m + at, first, valid, vectorised);
        store_up_to_four(v + at, second, valid, vectorised);
        if (master != nullptr) {
            store_up_to_four(master + at, p, valid, vectorised);
        }
        store_up_to_four(params + at, p, valid, vectorised);
    }
}
