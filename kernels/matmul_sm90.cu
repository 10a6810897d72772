// Linear layers on Hopper, bf16 GEMMs by wgmma and TMA (matmul_sm90.cuh):
//
//   y = x weightᵀ + bias + residual      dx = dy weight      dweight = dyᵀ x
//
// The portable kernels of matmul.cu compute the same on any GPU.
//
// Each GEMM has six kernels. Tiles of 256 and 224 columns: cooperative, clusters of two blocks.
// Tiles of 192 and 128 columns: cooperative or ping-pong (`_turns`), without a cluster. The choice
// is made in backend/kernels/geometry.rs.
//
// Required of the host: rows of all operands are multiples of 16 bytes; with split-K, at most one
// block per multiprocessor, so that all of them are resident. Shared memory: Hopper::SHARED_BYTES.
#include "matmul_sm90.cuh"

// A: (tokens, inputs), B: (outputs, inputs), C: (tokens, outputs); m tokens, n outputs, k inputs.
KERNEL(384, linear_fwd_sm90_256, CLUSTER(2), EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    TensorMap residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,    // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<Hopper<256, Major::K, Major::K, bf16, 2, false>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

KERNEL(384, linear_fwd_sm90_224, CLUSTER(2), EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    TensorMap residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,    // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<Hopper<224, Major::K, Major::K, bf16, 2, false>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

KERNEL(384, linear_fwd_sm90_192, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    TensorMap residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,    // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<Hopper<192, Major::K, Major::K, bf16, 1, false>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

KERNEL(384, linear_fwd_sm90_192_turns, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    TensorMap residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,    // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<Hopper<192, Major::K, Major::K, bf16, 1, true>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

KERNEL(384, linear_fwd_sm90_128, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    TensorMap residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,    // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<Hopper<128, Major::K, Major::K, bf16, 1, false>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

KERNEL(384, linear_fwd_sm90_128_turns, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    TensorMap residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,    // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<Hopper<128, Major::K, Major::K, bf16, 1, true>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

// A: (tokens, outputs), B: (outputs, inputs), C: (tokens, inputs); m tokens, n inputs, k outputs. C is added to where `add` is 1.
KERNEL(384, linear_bwd_input_sm90_256, CLUSTER(2), EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int m, int n, int k, int add) {
    hopper_matmul<Hopper<256, Major::K, Major::ACROSS, bf16, 2, false>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

KERNEL(384, linear_bwd_input_sm90_224, CLUSTER(2), EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int m, int n, int k, int add) {
    hopper_matmul<Hopper<224, Major::K, Major::ACROSS, bf16, 2, false>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

KERNEL(384, linear_bwd_input_sm90_192, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int m, int n, int k, int add) {
    hopper_matmul<Hopper<192, Major::K, Major::ACROSS, bf16, 1, false>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

KERNEL(384, linear_bwd_input_sm90_192_turns, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int m, int n, int k, int add) {
    hopper_matmul<Hopper<192, Major::K, Major::ACROSS, bf16, 1, true>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

KERNEL(384, linear_bwd_input_sm90_128, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int m, int n, int k, int add) {
    hopper_matmul<Hopper<128, Major::K, Major::ACROSS, bf16, 1, false>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

KERNEL(384, linear_bwd_input_sm90_128_turns, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int m, int n, int k, int add) {
    hopper_matmul<Hopper<128, Major::K, Major::ACROSS, bf16, 1, true>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

// A: (tokens, outputs), B: (tokens, inputs), C: (outputs, inputs); m outputs, n inputs, k tokens.
KERNEL(384, linear_bwd_weight_sm90_256, CLUSTER(2), CORESIDENT, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int* turns,    // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,  // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<Hopper<256, Major::ACROSS, Major::ACROSS, float, 2, false>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, turns, norms});
}

KERNEL(384, linear_bwd_weight_sm90_224, CLUSTER(2), CORESIDENT, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int* turns,    // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,  // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<Hopper<224, Major::ACROSS, Major::ACROSS, float, 2, false>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, turns, norms});
}

KERNEL(384, linear_bwd_weight_sm90_192, CORESIDENT, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int* turns,    // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,  // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<Hopper<192, Major::ACROSS, Major::ACROSS, float, 1, false>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, turns, norms});
}

KERNEL(384, linear_bwd_weight_sm90_192_turns, CORESIDENT, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int* turns,    // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,  // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<Hopper<192, Major::ACROSS, Major::ACROSS, float, 1, true>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, turns, norms});
}

KERNEL(384, linear_bwd_weight_sm90_128, CORESIDENT, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int* turns,    // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,  // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<Hopper<128, Major::ACROSS, Major::ACROSS, float, 1, false>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, turns, norms});
}

KERNEL(384, linear_bwd_weight_sm90_128_turns, CORESIDENT, EARLY, ALONE(384))(TensorMap a, TensorMap b, TensorMap c,
    int* turns,    // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,  // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<Hopper<128, Major::ACROSS, Major::ACROSS, float, 1, true>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, turns, norms});
}
