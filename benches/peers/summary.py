"""One table of how rows of `mapl bench`, `ops.py` and `steps.py` stand to the goals of this project.

Only rows of one device and day are put together; a goal whose rows are missing says so. Times of ops.py and of mapl bench come
from alternated processes of one run of the suite, times of cuBLASLt from the same process.
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
    """Rows by call."""

    def __init__(self, rows):
        self.calls = {}
        for row in rows:
            key = (row["dtype"], row["op"], row["model"], row["layer"], row["shape"])
            self.calls.setdefault(key, {})[row["variant"]] = row

    def ratios(self, op, peer):
        """The best peer's time over ours, for every call that has both. `peer` says which variants count."""
        found = {}
        for key, variants in self.calls.items():
            own = variants.get("mapl")
            others = [float(row["median_us"]) for name, row in variants.items() if name != "mapl" and peer(name)]
            if re.fullmatch(op, key[1]) and own and others:
                found[key] = min(others) / float(own["median_us"])
        return found

    def shares(self, op):
        """Shares of the ceiling of the same run."""
        return {
            key: float(variants["mapl"]["share"])
            for key, variants in self.calls.items()
            if re.fullmatch(op, key[1]) and "mapl" in variants and variants["mapl"]["share"]
        }


def lines(rows):
    """(what, values by call, goal, how they become one figure) of every goal that rows of ops and steps can speak of."""
    product = "linear_(fwd|bwd_input|bwd_weight)"
    blas = lambda name: name.startswith("cuBLASLt")  # noqa: E731
    torch = lambda name: name.startswith("torch")  # noqa: E731
    anyone = lambda name: True  # noqa: E731
    fused = lambda name: not torch(name) and not name.endswith(" logits")  # noqa: E731
    return [
        ("G-GEMM-2 layer products over cuBLASLt, geometric mean", rows.ratios(product, blas), 1.0, statistics.geometric_mean),
        ("G-GEMM-2 layer products over cuBLASLt, slowest", rows.ratios(product, blas), 0.93, min),
        ("layer products over torch, geometric mean", rows.ratios(product, torch), 1.0, statistics.geometric_mean),
        ("projection with SwiGLU over torch", rows.ratios("linear_glu_fwd", torch), 1.15, statistics.geometric_mean),
        ("log-prob head forward over the best peer", rows.ratios("head_logprob_fwd", anyone), 1.0, statistics.geometric_mean),
        ("log-prob head backward over torch", rows.ratios("head_logprob_bwd", torch), 1.0, statistics.geometric_mean),
        ("log-prob head backward over fused heads", rows.ratios("head_logprob_bwd", fused), 1.0, statistics.geometric_mean),
        ("attention forward over the best peer", rows.ratios("attention_fwd", anyone), 1.0, statistics.geometric_mean),
        ("attention backward over the best peer", rows.ratios("attention_bwd", anyone), 1.0, statistics.geometric_mean),
        ("row-wise ops over torch", rows.ratios("(norm|rope|glu|embedding).*", torch), 2.0, statistics.geometric_mean),
        ("G-OPT-1 AdamW, share of the memory ceiling", rows.shares("adamw"), 0.9, statistics.median),
        ("AdamW over torch fused", rows.ratios("adamw", torch), 1.0, statistics.geometric_mean),
        ("G-STEP-1 DPO step over TRL's best", rows.ratios("dpo_step", lambda name: name.startswith("trl")), 2.0, min),
        ("G-STEP-1 DPO step over Liger's fused DPO", rows.ratios("dpo_step", lambda name: name.startswith("liger")), 5.0, min),
        ("G-STEP-2 DPO step over the torch loop", rows.ratios("dpo_step", torch), 1.6, min),
        ("reward step over TRL's best", rows.ratios("reward_step", lambda name: name.startswith("trl")), 1.5, min),
        ("reward step over the torch loop", rows.ratios("reward_step", torch), 1.25, min),
    ]


def main():
    rows = read(arguments().rows)
    if not rows:
        raise SystemExit("no measured rows")
    first = rows[0]
    print(f"{first['device']}, {first['backend']}, {', '.join(sorted({row['date'] for row in rows}))}\n")
    print("| goal | calls | figure | least | most | wanted | |\n|---|---:|---:|---:|---:|---|---|")
    for what, values, goal, middle in lines(Rows(rows)):
        if not values:
            print(f"| {what} | 0 | no rows | | | at least {goal:g} | |")
            continue
        figure = middle(values.values())
        reached = "reached" if figure >= goal else "not reached"
        print(f"| {what} | {len(values)} | {figure:.2f} | {min(values.values()):.2f} | {max(values.values()):.2f} | at least {goal:g} | {reached} |")


if __name__ == "__main__":
    main()
