// Linear layers on Hopper: y = x weightᵀ + bias + residual, dx = dy weight, dweight = dyᵀ x, of bf16 by warpgroup products
// and bulk copies (matmul_sm90.cuh). The kernels of matmul.cu do the same anywhere.
//
// Every product has six kernels: tiles of 256 and 224 columns by both consumers together in clusters of two blocks, and of 192 and
// 128 columns by the consumers together or in turn in blocks by themselves. Choice: backend/kernels/geometry.rs.
//
// The host sees to it that rows of all operands are multiples of 16 bytes. shared: Hopper::SHARED_BYTES. With splits: at most
// as many blocks as there are multiprocessors.
#include "matmul_sm90.cuh"

// A: (tokens, inputs), B: (outputs, inputs), C: (tokens, outputs); m tokens, n outputs, k inputs.
template <GemmTile TILE>
KERNELS(384, linear_fwd_sm90, FOR(TILE: 256=N256 224=N224 192=N192 192_turns=N192_PING_PONG 128=N128 128_turns=N128_PING_PONG),
        IF(TILE: 256 224; CLUSTER(2)), EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    const TensorDescriptor& residual,  // (m, n), may be C; added before rounding, where `added` is 1
    const bf16* bias,                  // (n), may be absent
    int m, int n, int k, int added) {
    hopper_matmul<HopperGemm<TILE, Major::K, Major::K, bf16>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

// A: (tokens, outputs), B: (outputs, inputs), C: (tokens, inputs); m tokens, n inputs, k outputs. C is added to where `add` is 1.
template <GemmTile TILE>
KERNELS(384, linear_bwd_input_sm90, FOR(TILE: 256=N256 224=N224 192=N192 192_turns=N192_PING_PONG 128=N128 128_turns=N128_PING_PONG),
        IF(TILE: 256 224; CLUSTER(2)), EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c, int m, int n, int k, int add) {
    hopper_matmul<HopperGemm<TILE, Major::K, Major::ACROSS, bf16>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

// A: (tokens, outputs), B: (tokens, inputs), C: (outputs, inputs); m outputs, n inputs, k tokens.
template <GemmTile TILE>
KERNELS(384, linear_bwd_weight_sm90, FOR(TILE: 256=N256 224=N224 192=N192 192_turns=N192_PING_PONG 128=N128 128_turns=N128_PING_PONG),
        IF(TILE: 256 224; CLUSTER(2)), CORESIDENT, EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    int* semaphores,  // (tiles, 2) zeros, where splits > 1; left as zeros
    float* norms,     // of patches of C (patches.cuh), may be absent
    int m, int n, int k, int splits, int add) {
    hopper_matmul<HopperGemm<TILE, Major::ACROSS, Major::ACROSS, float>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, semaphores, norms});
}
