// Work lists of the attention kernels for Hopper: the tiles of all segments, the most expensive first. The
// cost of a tile of queries (attention_sm90.cuh) is the length of its path. The cost of a tile of keys is the
// number of query rows that see it: later rows of its segment, and its descendants.
//
// A counting sort by one block. Warp w counts, then writes the tiles of class CLASSES - 1 - w, a segment
// per lane. Class c holds the tiles with a cost of c span + 1 to (c + 1) span; the last class also holds
// tiles with higher costs. Within a class, tiles are in the order of the batch. Costs only order the list,
// so no result depends on them.
#include "common.cuh"
#include "attention_sm90.cuh"

constexpr int PLAN_THREADS = 1024;
static_assert(PLAN_THREADS / WARP == ATTENTION_CLASSES, "a warp per class of length");

/// Kind of a work list.
EXPORT enum AttentionTiles : int { QUERIES, KEYS };

/// Tiles of a segment and their costs: tile i has the cost base + (i + 1) rows. Tiles of keys are
/// numbered from the end of the segment.
struct SegmentTiles {
    int count, base;
    /// Value for the last word of a tile. For queries it is the path position of the segment's first row, to
    /// which the tile's offset is added. For keys it is the index after the last segment of the tree.
    int word;

    DEVICE SegmentTiles(const Segments& segments, int segment, int rows, AttentionTiles kind, const int* trees,
                        int tree_count) {
        int length = segments.rows(segment);
        count = ceil_div(length, rows);
        if (kind == QUERIES) {
            base = word = segments.rows_above(segment);
            return;
        }
        // Binary search for the first tree start above the segment, where the segment's tree ends.
        int below = 0, above = tree_count;
        while (below < above) {
            int middle = (below + above) / 2;
            if (trees[middle] <= segment) {
                below = middle + 1;
            } else {
                above = middle;
            }
        }
        word = trees[below];
        base = length - count * rows;
        for (int other = segment + 1; other < word; ++other) {
            base += segments.descends(other, segment) ? segments.rows(other) : 0;
        }
    }

    /// First tile with a cost above a limit.
    DEVICE int first_above(long long limit, int rows) const {
        return limit <= base ? 0 : int(min_of((limit - base) / rows, 1LL * count));
    }
};

KERNEL(1024, attention_plan_sm90, EARLY)(
    const int* starts,            // (segments + 1)
    const int* ancestor_offsets,  // (segments + 1)
    const int* ancestors,         // (ancestors)
    const int* trees,             // (tree_count + 1)
    int* work,                    // (HEADER + WORDS (segments + tokens / rows))
    AttentionTiles kind, int segments, int tree_count,
    int rows,    // tokens of a tile
    int span) {  // range of costs of a class
    SHARED(int, totals, PLAN_THREADS / WARP);
    wait_for_earlier_launch();
    launch_dependents();
    if (blockIdx.x != 0) {
        return;
    }
    if (kind != QUERIES && kind != KEYS) {
        trap("attention_plan_sm90: an unknown kind of work list");
    }
    Segments tree{starts, ancestor_offsets, ancestors};
    int warp = int(threadIdx.x) / WARP, lane = lane_index(), which = ATTENTION_CLASSES - 1 - warp, count = 0;
    auto range = [&](const SegmentTiles& tiles, int& from, int& to) {
        from = tiles.first_above(1LL * span * which, rows);
        to = which + 1 == ATTENTION_CLASSES ? tiles.count : tiles.first_above(1LL * span * (which + 1), rows);
    };
    for (int segment = lane; segment < segments; segment += WARP) {
        int from, to;
        range(SegmentTiles(tree, segment, rows, kind, trees, tree_count), from, to);
        count += to - from;
    }
#pragma unroll
    for (int mask = 1; mask < WARP; mask *= 2) {
        count += shuffle_xor(count, mask);
    }
    if (lane == 0) {
        totals[warp] = count;
    }
    // Waits until all totals are written.
    sync_block();
    int at = 0, all = 0;
    for (int w = 0; w < PLAN_THREADS / WARP; ++w) {
        at += w < warp ? totals[w] : 0;
        all += totals[w];
    }
    for (int begin = 0; begin < segments; begin += WARP) {
        int segment = begin + lane, from = 0, to = 0;
        SegmentTiles tiles(tree, min_of(segment, segments - 1), rows, kind, trees, tree_count);
        if (segment < segments) {
            range(tiles, from, to);
        }
        int sum = to - from;
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            int below = shuffle_up(sum, distance);
            sum += lane >= distance ? below : 0;
        }
        int* item = work + ATTENTION_HEADER + (at + sum - (to - from)) * ATTENTION_WORDS;
        for (int i = from; i < to; ++i, item += ATTENTION_WORDS) {
            int before = (kind == QUERIES ? i : tiles.count - 1 - i) * rows;
            item[0] = segment;
            item[1] = starts[segment] + before;
            item[2] = min_of(rows, tree.rows(segment) - before);
            item[3] = kind == QUERIES ? tiles.word + before : tiles.word;
        }
        at += shuffle(sum, WARP - 1);
    }
    if (threadIdx.x == 0) {
        work[0] = all;
    }
}
