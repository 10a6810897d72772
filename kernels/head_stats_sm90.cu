// The vocabulary head on Hopper with the statistics of each row (logit_stats.cuh). These kernels replace
// head_sums, head_powers and head_join of head_sm90.cu, and their log-probs, sums and exponentials have the
// same bits.
//
// Cost: 12 more bytes per row and tile, written and read once; see head_sm90.cuh.
#include "head_sm90.cuh"

// A: packed rows (rows, hidden), B: head (vocab, hidden).
KERNEL(384, head_stats_sums_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    float* weighted,    // (vocab / 192 rounded up, rows)
    float* total,       // (vocab / 192 rounded up, rows)
    float* rival,       // (vocab / 192 rounded up, rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, false, true>{{rows, vocab, hidden}, target, base, sums, hit, nullptr,
                                                           {weighted, total, rival}});
}

// As head_stats_sums_sm90, but also stores the exponentials.
KERNEL(384, head_stats_powers_sm90, EARLY, ALONE(384))(TensorMap packed, TensorMap head,
    TensorMap exps,     // (rows, vocab)
    const int* target,  // (rows)
    const float* base,  // (rows)
    float* sums,        // (vocab / 192 rounded up, rows)
    float* hit,         // (rows)
    float* weighted,    // (vocab / 192 rounded up, rows)
    float* total,       // (vocab / 192 rounded up, rows)
    float* rival,       // (vocab / 192 rounded up, rows)
    int rows, int vocab, int hidden) {
    run_job<Head>(packed, head, HeadJob<Head, true, true>{{rows, vocab, hidden}, target, base, sums, hit, &exps,
                                                          {weighted, total, rival}});
}

KERNEL(128, head_stats_join_sm90)(const bf16* packed,     // (rows, hidden_size)
                                  const bf16* head,       // (vocab, hidden_size)
                                  const float* sums,      // (slices, rows)
                                  const float* hit,       // (rows)
                                  float* base,            // (rows)
                                  float* total,           // (rows)
                                  float* logp,            // (rows)
                                  float* lse,             // (rows)
                                  bf16* exps,             // (rows, stride), may be null
                                  float* weighted,        // (slices, rows), read only, as the next two
                                  float* logits,          // (slices, rows): sums of logits
                                  float* rival,           // (slices, rows)
                                  const int* target,      // (rows)
                                  float* stats,           // (3, stats_stride): entropy, mean logit, is_top1
                                  int hidden_size, int vocab, int rows, int slices, int stride, int stats_stride) {
    HeadJoin arrays{packed, head, sums, hit, base, total, logp, lse, exps, {weighted, logits, rival},
                    target, stats, stats_stride};
    join_tiles<true>(arrays, hidden_size, vocab, rows, slices, stride);
}
