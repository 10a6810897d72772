// Linear layers on Hopper, bf16 GEMMs by wgmma and TMA (linear_sm90.cuh):
//
//   y = x weightᵀ + bias + residual      dx = dy weight      dweight = dyᵀ x
//
// The portable kernels of linear.cu compute the same on any GPU.
//
// Each GEMM has six kernels. Tiles of 256 and 224 columns: cooperative, clusters of two blocks.
// Tiles of 192 and 128 columns: cooperative or ping-pong (`_turns`), without a cluster. The choice
// is made in backend/kernels/geometry.rs.
//
// The host must ensure: rows of all operands are multiples of 16 bytes; with split-K, at most one block per
// multiprocessor, so that all of them are resident. Shared memory: Hopper::SHARED_BYTES.
#include "linear_sm90.cuh"

// A: (tokens, inputs), B: (outputs, inputs), C: (tokens, outputs); m tokens, n outputs, k inputs.
template <GemmTile TILE>
KERNELS(384, linear_fwd_sm90,
        FOR(TILE: 256=N256 224=N224 192=N192 192_turns=N192_PING_PONG 128=N128 128_turns=N128_PING_PONG),
        IF(TILE: 256 224; CLUSTER(2)), EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    const TensorDescriptor& residual,  // (m, n), may be C; added before rounding if `added` is 1
    const bf16* bias,                  // (n), may be null
    int m, int n, int k, int added) {
    hopper_matmul<HopperGemm<TILE, Major::K, Major::K, bf16>>(
        a, b, c, {m, n, k, 1, 0, bias, nullptr, nullptr, nullptr}, added != 0 ? &residual : nullptr);
}

// A: (tokens, outputs), B: (outputs, inputs), C: (tokens, inputs); m tokens, n inputs, k outputs.
// Accumulates into C if `add` is 1.
template <GemmTile TILE>
KERNELS(384, linear_bwd_input_sm90,
        FOR(TILE: 256=N256 224=N224 192=N192 192_turns=N192_PING_PONG 128=N128 128_turns=N128_PING_PONG),
        IF(TILE: 256 224; CLUSTER(2)), EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c, int m, int n, int k, int add) {
    hopper_matmul<HopperGemm<TILE, Major::K, Major::ACROSS, bf16>>(
        a, b, c, {m, n, k, 1, 0, nullptr, nullptr, nullptr, nullptr}, add != 0 ? &c : nullptr);
}

// A: (tokens, outputs), B: (tokens, inputs), C: (outputs, inputs); m outputs, n inputs, k tokens.
template <GemmTile TILE>
KERNELS(384, linear_bwd_weight_sm90,
        FOR(TILE: 256=N256 224=N224 192=N192 192_turns=N192_PING_PONG 128=N128 128_turns=N128_PING_PONG),
        IF(TILE: 256 224; CLUSTER(2)), CORESIDENT, EARLY, ALONE(384))(
    const TensorDescriptor& a, const TensorDescriptor& b, const TensorDescriptor& c,
    int* semaphores,  // (tiles, 2) zeros if splits > 1; zero again at the end
    float* norms,     // of patches of C (linear_patches.cuh), may be null
    int m, int n, int k, int splits, int add) {
    hopper_matmul<HopperGemm<TILE, Major::ACROSS, Major::ACROSS, float>>(
        a, b, c, {m, n, k, splits, add, nullptr, nullptr, semaphores, norms});
}
