// Warp shuffles and votes. PTX ISA: shfl.sync, vote.sync, bar.warp.sync.
//
// All 32 lanes of a warp must call each of these functions; blocks are whole warps.
#pragma once

#ifdef __CUDACC__

constexpr unsigned ALL_LANES = 0xffffffffu;

DEVICE int lane_index() {
    return int(threadIdx.x) & (WARP - 1);
}

/// Value of lane `lane ^ mask`.
template <class T>
DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(ALL_LANES, value, mask);
}

/// Value of lane `source`.
template <class T>
DEVICE T shuffle(T value, int source) {
    return __shfl_sync(ALL_LANES, value, source);
}

/// Value of lane `lane - distance`; the lane's own value in the first `distance` lanes.
template <class T>
DEVICE T shuffle_up(T value, int distance) {
    return __shfl_up_sync(ALL_LANES, value, distance);
}

/// Value of lane `lane + distance`; the lane's own value in the last `distance` lanes.
template <class T>
DEVICE T shuffle_down(T value, int distance) {
    return __shfl_down_sync(ALL_LANES, value, distance);
}

/// Bit i is set if the predicate of lane i is true.
DEVICE uint32_t lane_ballot(bool predicate) {
    return __ballot_sync(ALL_LANES, predicate);
}

DEVICE bool any_lane(bool predicate) {
    return __any_sync(ALL_LANES, predicate);
}

DEVICE bool all_lanes(bool predicate) {
    return __all_sync(ALL_LANES, predicate);
}

/// Warp barrier; writes before it are visible to all lanes after it.
DEVICE void sync_warp() {
    __syncwarp();
}

#else

inline int lane_index() {
    return emulator::lane();
}

template <class T>
T shuffle(T value, int source) {
    return emulator::exchange("shfl.sync.idx", value)[source & (WARP - 1)];
}

template <class T>
T shuffle_xor(T value, int mask) {
    return emulator::exchange("shfl.sync.bfly", value)[emulator::lane() ^ mask];
}

template <class T>
T shuffle_up(T value, int distance) {
    int from = emulator::lane() - distance;
    return emulator::exchange("shfl.sync.up", value)[from < 0 ? emulator::lane() : from];
}

template <class T>
T shuffle_down(T value, int distance) {
    int from = emulator::lane() + distance;
    return emulator::exchange("shfl.sync.down", value)[from >= WARP ? emulator::lane() : from];
}

inline uint32_t lane_ballot(bool predicate) {
    const bool* votes = emulator::exchange("vote.sync", predicate);
    uint32_t bits = 0;
    for (int i = 0; i < WARP; ++i) {
        bits |= uint32_t(votes[i]) << i;
    }
    return bits;
}

inline bool any_lane(bool predicate) {
    return lane_ballot(predicate) != 0;
}

inline bool all_lanes(bool predicate) {
    return lane_ballot(predicate) == 0xffffffffu;
}

inline void sync_warp() {
    emulator::exchange("bar.warp.sync", char(0));
}

#endif
