"""Masks of attention rows: a causal sequence, or a tree of a prompt with two responses in the order of the batch. As a rule for a
query and a key, and as ranges of queries and keys for MagiAttention.

python3 -B masks.py compares the ranges with the rule for every query and key of small trees. Needs only the standard library.
"""

# Kinds of a range, as MagiAttention numbers them. FULL: every query sees every key. CAUSAL: the last query sees all
# keys, and each earlier query sees one key fewer than the query after it (aligned at the bottom right).
FULL, CAUSAL = 0, 1


def sees(q, k, prompt=None, response=None):
    """Whether the query at position q sees the key at position k, for numbers or for tensors of them. Without a prompt the row is
    causal. Else it holds the prompt and two responses, and neither response sees the other."""
    if prompt is None:
        return q >= k
    return (q >= k) & ((q < prompt + response) | (k < prompt) | (k >= prompt + response))


def ranges(rows, length, prompt=None, response=None):
    """Ranges of queries, ranges of keys and kinds whose union is the mask of `rows` rows of `length` tokens, one after the other. No
    query and key are in two of them."""
    queries, keys, kinds = [], [], []

    def add(row, q, k, kind):
        queries.append([row * length + q[0], row * length + q[1]])
        keys.append([row * length + k[0], row * length + k[1]])
        kinds.append(kind)

    for row in range(rows):
        if prompt is None:
            add(row, (0, length), (0, length), CAUSAL)
            continue
        first = prompt + response
        add(row, (0, first), (0, first), CAUSAL)
        add(row, (first, first + response), (0, prompt), FULL)
        add(row, (first, first + response), (first, first + response), CAUSAL)
    return queries, keys, kinds


def covered(queries, keys, kinds, q, k):
    """In how many ranges a query sees a key."""
    count = 0
    for (first_q, end_q), (first_k, end_k), kind in zip(queries, keys, kinds):
        inside = first_q <= q < end_q and first_k <= k < end_k
        count += inside and (kind == FULL or end_k - k >= end_q - q)
    return count


def check():
    """Ends with an error unless the ranges of several trees are their masks."""
    compared = 0
    for rows, prompt, response, length in [(1, None, None, 7), (3, None, None, 5), (2, 4, 3, 10), (1, 1, 1, 3), (2, 3, 5, 13), (3, 6, 1, 8)]:
        parts = ranges(rows, length, prompt, response)
        for q in range(rows * length):
            for k in range(rows * length):
                expected = q // length == k // length and sees(q % length, k % length, prompt, response)
                if covered(*parts, q, k) != int(expected):
                    raise SystemExit(f"{rows} rows, prompt {prompt}, response {response}: query {q}, key {k}: {covered(*parts, q, k)} ranges, mask {expected}")
                compared += 1
    print(f"{compared} queries and keys: the ranges are the masks")


if __name__ == "__main__":
    check()
