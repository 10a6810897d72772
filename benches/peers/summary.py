"""Table of this project's performance goals, computed from rows of `mapl bench`, `ops.py` and `steps.py`.

All rows must come from one device and day. Goals without rows are listed as such. Times of ops.py and mapl bench come from
alternating processes of one run of the suite, times of cuBLASLt from the same process.
"""

import argparse
import csv
import re
import statistics


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", help="CSV files")
    return parser.parse_args()


def read(paths):
    rows = []
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row["status"] == "measured"]
    days = {(row["backend"], row["date"]) for row in rows}
    if len({row["backend"] for row in rows}) > 1:
        raise SystemExit(f"rows of several backends: {sorted(days)}")
    return rows


class Rows:
    """Rows grouped by call."""

    def __init__(self, rows):
        self.calls = {}
        for row in rows:
            key = (row["dtype"], row["op"], row["model"], row["layer"], row["shape"])
            self.calls.setdefault(key, {})[row["variant"]] = row

    def ratios(self, op, peer, models=None, shape=""):
        """Best peer's time over ours, for every layer call with both. `peer` selects variants. `models` selects models; the default
        is all except square GEMMs. `shape` is the start of the shape."""
        found = {}
        for key, variants in self.calls.items():
            asked = (key[2] in models if models else key[2] != "square" and key[3] != "logits") and key[4].startswith(shape)
            own = variants.get("mapl") if asked else None
            others = [float(row["median_us"]) for name, row in variants.items() if name != "mapl" and peer(name)]
            if re.fullmatch(op, key[1]) and own and others:
                found[key] = min(others) / float(own["median_us"])
        return found

    def trees(self, peer):
        """Best peer's time over ours of attention over trees of 512 to 4,096 tokens."""
        found = self.ratios("attention_(fwd|bwd)", peer, shape="tokens")
        sizes = {key: dict(part.split("=") for part in key[4].split()) for key in found}
        lengths = {key: int(s["prompt"]) + 2 * int(s["response"]) for key, s in sizes.items() if "prompt" in s}
        return {key: found[key] for key, length in lengths.items() if 512 <= length <= 4096}

    def heads(self):
        """By (dtype, model, rows): calls of the head and of its bare GEMMs, by op."""
        found = {}
        for (dtype, op, model, layer, shape), variants in self.calls.items():
            sizes = dict(part.split("=") for part in shape.split())
            if layer in ("head", "logits"):
                found.setdefault((dtype, model, sizes.get("rows") or sizes["tokens"]), {})[op] = (variants, sizes)
        return found

    def bare(self, own, products, models):
        """cuBLASLt's time of the bare GEMMs over our time of the head, for heads of the given models."""
        found = {}
        for key, ops in self.heads().items():
            theirs = [best(ops[op][0], lambda name: name.startswith("cuBLASLt")) for op in products if op in ops]
            ours = best(ops[own][0], lambda name: name == "mapl") if own in ops else None
            if key[1] in models and ours and len(theirs) == len(products) and all(theirs):
                found[key] = sum(theirs) / ours
        return found

    def preference(self, peer):
        """Time of the best peer's DPO head with its reference's forward pass, over the time of our two calls."""
        found = {}
        for key, ops in self.heads().items():
            ours = [best(ops[op][0], lambda name: name == "mapl") for op in ("head_preference", "head_logprob_fwd") if op in ops]
            theirs = best(ops["head_preference"][0], lambda name: peer(name) and name.endswith(" with reference")) if "head_preference" in ops else None
            if theirs and len(ours) == 2 and all(ours):
                found[key] = theirs / sum(ours)
        return found

    def peaks(self, op, peer, shape):
        """Least peak memory of the peers over ours, of steps of a shape."""
        found = {}
        for key, variants in self.calls.items():
            if key[1] == op and key[4].startswith(shape) and "mapl" in variants:
                ours = peak(variants["mapl"])
                theirs = [peak(row) for name, row in variants.items() if peer(name) and peak(row)]
                if ours and theirs:
                    found[key] = min(theirs) / ours
        return found

    def shares(self, op):
        """Shares of the ceiling measured in the same run."""
        return {
            key: float(variants["mapl"]["share"])
            for key, variants in self.calls.items()
            if re.fullmatch(op, key[1]) and "mapl" in variants and variants["mapl"]["share"]
        }


def peak(row):
    """Peak memory of a step in MiB, which steps.py notes; None without it."""
    found = re.search(r"peak (\d+) MiB", row["note"])
    return int(found[1]) if found else None


def best(variants, wanted):
    """Smallest median of the variants with a wanted name, or None."""
    return min((float(row["median_us"]) for name, row in variants.items() if wanted(name)), default=None)


def lines(rows):
    """(description, values by call, goal, aggregation) of every goal that rows of ops and steps can answer."""
    passes = ["linear_fwd", "linear_bwd_input", "linear_bwd_weight"]
    wide, narrow = ["llama-3.1-8b"], ["qwen2.5-0.5b"]
    product = "linear_(fwd|bwd_input|bwd_weight)"
    blas = lambda name: name.startswith("cuBLASLt")  # noqa: E731
    torch = lambda name: name.startswith("torch")  # noqa: E731
    flex = lambda name: name.endswith("flex-attention")  # noqa: E731
    anyone = lambda name: True  # noqa: E731
    trl = lambda name: name.startswith("trl")  # noqa: E731
    # The variant names in rows of steps.py contain no library version.
    same = lambda name: trl(name) and not name.endswith("once")  # noqa: E731
    once = lambda name: trl(name) and name.endswith("once")  # noqa: E731
    # TRL 1.15 and later stores no logits.
    chunks = lambda name: trl(name) and "chunked" in name  # noqa: E731
    scaled = lambda name: name.startswith("liger") and "scaled" in name  # noqa: E731
    liger_dpo = lambda name: name.startswith("liger") and "dpo" in name  # noqa: E731
    fused = lambda name: not torch(name) and not name.endswith(" logits")  # noqa: E731
    return [
        ("G-GEMM-1 square GEMMs over cuBLASLt", rows.ratios(product, blas, ["square"]), 1.0, min),
        ("G-GEMM-2 layer GEMMs over cuBLASLt, geometric mean", rows.ratios(product, blas), 1.0, statistics.geometric_mean),
        ("G-GEMM-2 layer GEMMs over cuBLASLt, slowest", rows.ratios(product, blas), 0.93, min),
        ("layer GEMMs over torch, geometric mean", rows.ratios(product, torch), 1.0, statistics.geometric_mean),
        ("projection with SwiGLU over torch", rows.ratios("linear_glu_fwd", torch), 1.15, statistics.geometric_mean),
        ("G-HEAD-1 bare logits over the head forward, hidden 4096", rows.bare("head_logprob_fwd", passes[:1], wide), 1 / 1.03, min),
        ("G-HEAD-1 bare logits over the head forward, hidden 896", rows.bare("head_logprob_fwd", passes[:1], narrow), 1.0, min),
        ("G-HEAD-2 three bare GEMMs over head, loss and gradients, hidden 4096", rows.bare("head_preference", passes, wide), 1 / 1.08, min),
        ("G-HEAD-2 three bare GEMMs over head, loss and gradients, hidden 896", rows.bare("head_preference", passes, narrow), 1 / 1.15, min),
        ("G-HEAD-4 DPO head with reference over TRL's chunks", rows.preference(chunks), 1.7, min),
        ("G-HEAD-4 DPO head with reference over Liger's scaled cross-entropy", rows.preference(scaled), 1.3, min),
        ("DPO head with reference over Liger's fused DPO", rows.preference(liger_dpo), 5.0, min),
        ("log-prob head forward over the best peer", rows.ratios("head_logprob_fwd", anyone), 1.0, statistics.geometric_mean),
        ("log-prob head backward over torch", rows.ratios("head_logprob_bwd", torch), 1.0, statistics.geometric_mean),
        ("log-prob head backward over fused heads", rows.ratios("head_logprob_bwd", fused), 1.0, statistics.geometric_mean),
        ("attention forward over the best peer", rows.ratios("attention_fwd", anyone), 1.0, statistics.geometric_mean),
        ("attention backward over the best peer", rows.ratios("attention_bwd", anyone), 0.95, statistics.geometric_mean),
        ("attention over trees, over FlexAttention by Triton", rows.trees(flex), 2.0, min),
        ("attention over trees, over the best peer", rows.trees(anyone), 1.0, min),
        ("row-wise ops over torch", rows.ratios("(norm|rope|glu|embedding).*", torch), 2.0, statistics.geometric_mean),
        ("G-OPT-1 AdamW, share of the memory ceiling", rows.shares("adamw"), 0.9, statistics.median),
        ("AdamW over torch fused", rows.ratios("adamw", torch), 1.0, statistics.geometric_mean),
        ("G-STEP-1 DPO step of pairs over TRL's best", rows.ratios("dpo_step", trl, shape="pairs"), 2.0, min),
        ("G-STEP-1 DPO step of MAPL quads over TRL with the same comparisons", rows.ratios("dpo_step", same, shape="quads"), 2.5, min),
        ("G-STEP-1 DPO step of MAPL quads over TRL with each sequence once", rows.ratios("dpo_step", once, shape="quads"), 2.5, min),
        ("G-STEP-1 DPO step over Liger's fused DPO", rows.ratios("dpo_step", liger_dpo), 5.0, min),
        ("G-STEP-4 peak memory of TRL's leanest over ours, DPO of pairs", rows.peaks("dpo_step", trl, "pairs"), 2.0, min),
        ("G-STEP-4 peak memory of TRL's leanest over ours, DPO of MAPL quads", rows.peaks("dpo_step", trl, "quads"), 2.0, min),
        ("G-STEP-2 DPO step over the torch loop", rows.ratios("dpo_step", torch), 1.6, min),
        ("reward step over TRL's best", rows.ratios("reward_step", trl), 1.5, min),
        ("reward step over the torch loop", rows.ratios("reward_step", torch), 1.25, min),
    ]


def main():
    rows = read(arguments().rows)
    if not rows:
        raise SystemExit("no measured rows")
    first = rows[0]
    print(f"{first['device']}, {first['backend']}, {', '.join(sorted({row['date'] for row in rows}))}\n")
    print("| goal | calls | value | min | max | wanted | |\n|---|---:|---:|---:|---:|---|---|")
    for what, values, goal, middle in lines(Rows(rows)):
        if not values:
            print(f"| {what} | 0 | no rows | | | at least {goal:g} | |")
            continue
        figure = middle(values.values())
        reached = "reached" if figure >= goal else "not reached"
        print(f"| {what} | {len(values)} | {figure:.2f} | {min(values.values()):.2f} | {max(values.values()):.2f} | at least {goal:.3g} | {reached} |")


if __name__ == "__main__":
    main()
