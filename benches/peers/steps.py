"""Times whole DPO and reward training steps: `mapl`, a torch loop (eager, compiled, Liger's fused DPO loss), and TRL.

Every run is a separate process, and sides alternate: A B C, then C B A. All train the same pairs, or the same MAPL quads, in the
same order from the same start weights (step_rows.py). `mapl` and TRL read them as text through the tokenizer that this script
writes, the torch loop reads the ids. The first loss, and for DPO the first log-probs, must be those that follow from `mapl score`,
before a time is kept. A side that fails, runs out of memory or takes too long becomes a row with the reason, and the other sides
continue.
"""

import argparse
import csv
import datetime
import math
import os
import pathlib
import platform
import statistics
import sys
import time

from step_processes import OutOfTime, run_mapl, run_peer, scores
from step_rows import COMPARISONS, SIZES, comparisons_of, of_update, prepare, prepare_reward, prompt_lengths, weights_of

# Sides by method and unit, mapl first. When time is short, sides are skipped from the end of a list.
# `trl once` trains only the base and inter comparisons of a quad, which hold each of its sequences once. This is
# the least that TRL can compute for a quad; the other sides train all four comparisons.
SIDES = {
    ("dpo", "pairs"): ["mapl", "torch eager", "trl", "liger dpo", "trl liger", "torch compile"],
    ("dpo", "quads"): ["mapl", "trl", "trl once", "trl liger", "trl liger once", "torch eager", "liger dpo", "torch compile"],
    ("reward", "pairs"): ["mapl", "torch eager", "trl", "torch compile"],
    ("reward", "quads"): ["mapl", "trl", "trl once", "torch eager", "torch compile"],
}
METHODS = ["dpo", "reward"]
# Prefixes of the names of sides whose kernels need a GPU.
GPU_SIDES = ("trl liger",)
# Largest absolute error of the first loss, and largest relative error of a mean log-prob. A random model hardly
# depends on its prompt: one row under a wrong prompt moves the mean by 1e-6. In bf16 every activation is rounded to
# 2^-9 of its size. The bf16 tolerance therefore detects wrong tokens but no wrong prompt, which only f32 detects.
LOSS_TOLERANCE = {"f32": 1e-5, "bf16": 5e-3}
LOGP_TOLERANCE = {"f32": 5e-7, "bf16": 5e-3}
COLUMNS = (
    "schema date commit device backend variant dtype op model layer shape cache status samples calls median_us p20_us p80_us least_us bytes flops "
    "gb_per_s tflop_per_s bound memory_gb_per_s product_tflop_per_s share predicted_us energy_mj others error_share note"
).split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mapl", default="target/release/mapl", type=pathlib.Path)
    parser.add_argument("--python", default=sys.executable, help="Python with the packages of requirements.txt")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for all output files")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], help="weights and activations of all sides [default: bf16 on cuda, else f32]")
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--units", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="what an update consists of [default: both]")
    parser.add_argument("--sides", nargs="+", help="sides by name prefix [default: all]")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of an update")
    parser.add_argument("--quads", type=int, help="quads of an update [default: half as many as pairs]")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--instruction", type=int, default=32, help="tokens that the second prompt of a quad appends")
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed updates per run")
    parser.add_argument("--warmup", type=int, default=2, help="updates before the timed ones")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of one run per side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=300.0, help="seconds after which a side's process is killed")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which the remaining runs are skipped")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, also in Liger's loss")
    parser.add_argument("--commit", default="unknown", help="commit of mapl to store in the rows")
    parser.add_argument("--output", type=pathlib.Path, help="CSV file to write the rows to")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "f32")
    args.quads = args.quads or max(1, args.pairs // 2)
    for name in ("pairs", "quads", "prompt", "instruction", "steps", "warmup", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.response < 2:
        parser.error("--response must be at least 2: a word and the EOS token")
    return args


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    args.work, args.mapl = args.work.resolve(), args.mapl.resolve()
    args.deadline = time.monotonic() + args.limit
    folder, rows = prepare(args, args.units), []
    if "reward" in args.methods:
        prepare_reward(folder)
    for unit in args.units:
        for method in args.methods:
            rows += measure(args, method, unit, folder)
            if args.output:
                with open(args.output, "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


def measure(args, method, unit, folder):
    """Rows of all sides of a method and a unit."""
    sides = [side for side in SIDES[method, unit] if not args.sides or any(side.startswith(text) for text in args.sides)]
    runs, failed = {side: [] for side in sides}, {}
    for side in sides:
        if side == "torch compile" and args.no_compile:
            failed[side] = ("skipped", "torch.compile is left out")
        if side.startswith(GPU_SIDES) and args.device == "cpu":
            failed[side] = ("skipped", "its kernels need a GPU")
    try:
        known = scores(args, method, unit, folder)
    except Exception as why:  # noqa: BLE001  (becomes a row of every side)
        failed |= {side: ("skipped" if isinstance(why, OutOfTime) else "failed", f"mapl score: {why}") for side in sides}
        known = []
    for turn in range(args.rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            if side not in failed:
                one(args, method, unit, side, folder, runs, failed, known)
    return table(args, method, unit, sides, runs, failed)


def one(args, method, unit, side, folder, runs, failed, known):
    """One run of a side, kept if it agrees with what is known. A side that fails is not run again."""
    try:
        if side == "mapl":
            weights = weights_of(unit) if unit == "quads" else {}
            run = run_mapl(args, method, unit, folder, weights, max(prompt_lengths(args, unit)) + args.response)
        else:
            run = run_peer(args, method, unit, side, folder, pathlib.Path(__file__).with_name("step_sides.py"))
        agree(args, method, unit, side, run, known)
        runs[side].append(run)
        print(f"{method} {unit} {side}: {1e3 * statistics.median(run['seconds']):.1f} ms per step", file=sys.stderr, flush=True)
    except OutOfTime as why:
        # Earlier runs of this side still count.
        if not runs[side]:
            failed[side] = ("skipped", str(why))
    except Exception as why:  # noqa: BLE001  (every failure becomes a row)
        note = " ".join(str(why).split())[:300]
        missing = "ModuleNotFoundError" in note or "ImportError" in note
        failed[side] = ("absent" if missing else "failed", note)


def agree(args, method, unit, side, run, known):
    """Checks the first loss, which is ln 2 for DPO, and for DPO the first log-probs."""
    compared, loss = comparisons_of(side, unit), math.log(2)
    if method == "reward":
        gaps = [group[plus] - group[minus] for group in known for _, plus, minus in compared]
        loss = statistics.fmean(math.log1p(math.exp(-gap)) for gap in gaps)
    if abs(run["first_loss"] - loss) > LOSS_TOLERANCE[args.dtype]:
        source = "mapl score" if method == "reward" else "ln 2"
        raise RuntimeError(f"the first loss is {run['first_loss']}, but {source} gives {loss}")
    if method == "reward":
        return
    # `mapl` logs means over the base comparisons; the other sides log means over all comparisons.
    compared = [c for c in compared if side != "mapl" or c[0] == "base"]
    for side_of, found in zip((1, 2), run["first_logps"]):
        expected = statistics.fmean(group[c[side_of]] for group in known for c in compared)
        if abs(found - expected) > LOGP_TOLERANCE[args.dtype] * abs(expected):
            raise RuntimeError(f"a mean log-prob of the first update is {found}, but mapl score gives {expected}, so the tokens differ")


def table(args, method, unit, sides, runs, failed):
    extra = f" instruction={args.instruction}" if unit == "quads" else ""
    shape = f"{unit}={of_update(args, unit)} prompt={args.prompt}{extra} response={args.response}"
    device = next((run["hardware"] for side in sides for run in runs[side] if run.get("hardware")), platform.processor() or platform.machine())
    rows = []
    for side in sides:
        row = dict.fromkeys(COLUMNS, "") | {
            "schema": 1, "date": datetime.date.today().isoformat(), "commit": args.commit, "device": device, "backend": args.device,
            "variant": side, "dtype": args.dtype, "op": f"{method}_step", "model": args.model, "layer": "step", "shape": shape,
        }  # fmt: skip
        if side in failed or not runs[side]:
            status, note = failed.get(side, ("failed", "not run"))
            rows.append(row | {"status": status, "note": note})
            print(f"{method} {unit} {side:<14} {rows[-1]['status']}: {note}")
            continue
        taken = sorted(second for run in runs[side] for second in run["seconds"])
        cut = [taken[round(q * (len(taken) - 1))] for q in (0.2, 0.8)]
        middle = statistics.median(taken)
        by_round = zip(runs["mapl"], runs[side]) if runs.get("mapl") else []
        ratios = [statistics.median(run["seconds"]) / statistics.median(own["seconds"]) for own, run in by_round]
        peaks = [run["peak_mib"] for run in runs[side] if run["peak_mib"]]
        note = f"{of_update(args, unit) / middle:.2f} {unit}/s" + (f"; peak {max(peaks):.0f} MiB" if peaks else "")
        rows.append(row | {
            "status": "measured", "samples": len(taken), "calls": 1, "median_us": 1e6 * middle, "p20_us": 1e6 * cut[0], "p80_us": 1e6 * cut[1],
            "least_us": 1e6 * taken[0], "note": note,
        })  # fmt: skip
        ratio = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f}) mapl's time" if ratios else ""
        print(f"{method} {unit} {side:<14} {1e3 * middle:9.1f} ms  {note}  {ratio}")
    return rows


if __name__ == "__main__":
    main()
