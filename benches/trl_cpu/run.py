"""Alternates `mapl dpo` with TRL's DPOTrainer on the CPU and prints a table; benches/README.md describes the method.

Both sides are checked against each other before any ratio is printed: a run that did other work is an error. Needs only the
standard library; TRL is called through `--python`.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
from pathlib import Path

from prepare import prepare
from processes import expected_logps, run_mapl, run_trl

LN_2 = math.log(2)
LOSS_TOLERANCE = 1e-3
# A random model hardly depends on its prompt: one row under a wrong prompt moves the mean by at least 1e-6. Both sides
# agree to 1e-7.
LOGP_TOLERANCE = 5e-7
# In bf16 every activation is rounded to 2^-9 of its size, and with bf16 weights TRL's loss is rounded too. This
# bound detects wrong rows or wrong targets, but no wrong prompt; the same run in f32 detects a wrong prompt.
BF16_TOLERANCE = 4e-3
# CPU cores that other programs may use while wall-clock times are still meaningful.
QUIET = 0.1
# Elements of the weight matrices that every token is multiplied by, and of the head.
BODY = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
HEAD = 8192 * 256
CASES = ("pairs", "groups-margin", "groups-pair")


def arguments():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines file of prompt, chosen, rejected")
    parser.add_argument("--python", required=True, help="Python with the packages of requirements.txt")
    parser.add_argument("--work", type=Path, required=True, help="folder for all output files")
    parser.add_argument("--mapl", type=Path, default=root / "target/release/mapl")
    parser.add_argument("--json", type=Path, help="JSON file for all measurements")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--reference", nargs="+", choices=["online", "cached"], default=["online"])
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument("--steps", type=int, default=4, help="timed updates per run")
    parser.add_argument("--warmup", type=int, default=1, help="updates before the timed ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="pairs or groups per update")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="mapl's precision")
    parser.add_argument("--trl-dtype", choices=["f32", "autocast", "bf16"], default="f32",
                        help="TRL's: f32, f32 weights with bf16 autocast, or bf16 weights")  # fmt: skip
    parser.add_argument("--trl-attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--mapl-flags", nargs="*", default=[], help="more flags for mapl dpo, each as one word: --mapl-flags=--x")
    parser.add_argument("--mapl-cached-flags", nargs="*", default=["--precompute-ref-log-probs"])
    parser.add_argument("--probe", action="store_true", help="time TRL's settings against each other instead")
    settings = parser.parse_args()
    for name in ("warmup", "steps", "repeats", "threads", "batch"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name} must be at least 1")
    settings.updates = settings.warmup + settings.steps
    settings.work, settings.mapl = settings.work.resolve(), settings.mapl.resolve()
    if not settings.mapl.is_file():
        parser.error(f"{settings.mapl} does not exist; build it with cargo build --release")
    if "cached" in settings.reference:
        text = subprocess.run([settings.mapl, "dpo", "--help"], capture_output=True, text=True).stdout
        missing = [flag for flag in settings.mapl_cached_flags if flag.startswith("--") and flag not in text]
        if missing:
            parser.error(f"this mapl has no {missing[0]}; leave out --reference cached")
    return settings


def rates(settings, case, run):
    """Means over the timed updates. An update lasts from the end of the previous one to its own end."""
    first, last = settings.warmup - 1, settings.updates - 1
    seconds = (run["ends"][last] - run["ends"][first]) / settings.steps
    cpu = (run["cpu"][last] - run["cpu"][first]) / settings.steps
    return {
        "pairs_per_s": case["pairs_per_update"] / seconds,
        "step_s": seconds,
        "cpu_s_per_step": cpu,
        "peak_mib": run["peak_mib"],
        "wall_s": run["wall_s"],
        "others": run["others"],
    }


def relative(a, b):
    return abs(a - b) / max(abs(a), abs(b), 1e-30)


def verify(settings, name, case, mapl, trl, start_logps):
    """Raises unless both sides trained the same rows to the same losses. Returns the largest differences."""
    def demand(holds, what):
        if not holds:
            raise SystemExit(f"{name}: the sides did not do the same work: {what}")

    demand(len(mapl["losses"]) == len(trl["losses"]) == settings.updates, "number of updates")
    demand(set(trl["pairs"]) == {case["pairs_per_update"]}, f"TRL's pairs per update {trl['pairs']}")
    demand(set(mapl["comparisons"]) == {case["comparisons"]}, f"mapl's comparisons per update {mapl['comparisons']}")
    rounded = 1e-6 if settings.trl_dtype == "f32" else BF16_TOLERANCE
    sides = [("TRL", trl["losses"][0], rounded), *((f"mapl {k}", v, 1e-6) for k, v in mapl["kind_losses"][0].items())]
    for side, loss, tolerance in sides:
        demand(abs(loss - LN_2) < tolerance, f"first loss of {side} is {loss}, not ln 2")
    found = {}
    exact = settings.dtype == settings.trl_dtype == "f32"
    if case["same_loss"]:
        found["loss"] = max(map(relative, mapl["losses"], trl["losses"]))
        demand(not exact or found["loss"] <= LOSS_TOLERANCE, f"losses {mapl['losses']} and {trl['losses']}")
    if start_logps is None:
        start_logps = mapl["logps"][0]
    found["logp"] = max(map(relative, start_logps, trl["logps"][0]))
    demand(found["logp"] <= (LOGP_TOLERANCE if exact else BF16_TOLERANCE), f"log-probs of the first update {start_logps} and {trl['logps'][0]}")
    return found


def describe(settings, cases):
    """Adds to each case its comparisons per update, and flags that make the losses equal."""
    for name, case in cases.items():
        case["comparisons"] = settings.batch * (1 if name == "pairs" else 5)
        # TRL has no four-term loss. Its pairs then have a different mean loss, and gradients differ after the
        # first update.
        case["same_loss"] = name != "groups-margin"
        if name == "groups-pair":
            # One mean over the 1 + 2 + 2 pairs of every group, as in TRL.
            case["mapl_flags"] = ["--base-weight", "0.2", "--intra-weight", "0.4", "--inter-weight", "0.4"]


def spread(values, digits):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def work_per_step(settings, case, cached, mapl, trl):
    """Tokens and head rows per timed update, and GFLOP of its GEMMs (without attention and recomputation)."""
    timed = slice(settings.warmup, settings.updates)
    mean = statistics.fmean
    distinct = mean(d["response_tokens"] for d in trl["distinct"][timed])
    passes = 3 if cached else 4
    def flop(tokens, rows):
        return 2 * passes * (BODY * tokens + HEAD * rows) / 1e9

    sides = {
        "mapl": {"tokens": mean(mapl["tokens"][timed]), "head_rows": distinct},
        "trl": {
            "tokens": mean(trl["padded_tokens"][timed]),
            "tokens_without_padding": mean(trl["tokens"][timed]),
            "head_rows": mean(trl["head_rows"][timed]),
            "response_tokens": mean(trl["response_tokens"][timed]),
        },
    }
    for side in sides.values():
        side["gflop"] = flop(side["tokens"], side["head_rows"])
    return sides


def measure(settings, name, case, cached):
    label = f"{name}, reference {'cached' if cached else 'online'}"
    start_logps = expected_logps(settings, case) if "first" in case else None
    runs, found = {"mapl": [], "trl": []}, []
    for repeat in range(settings.repeats):
        # A B, then B A: neither side always runs second.
        for side in ("mapl", "trl") if repeat % 2 == 0 else ("trl", "mapl"):
            call = run_mapl if side == "mapl" else run_trl
            runs[side].append(call(settings, case, cached, settings.work / "runs" / side))
        mapl, trl = runs["mapl"][-1], runs["trl"][-1]
        found.append(verify(settings, label, case, mapl, trl, start_logps))
        speed = [rates(settings, case, run)["pairs_per_s"] for run in (mapl, trl)]
        print(f"{label}, repeat {repeat + 1}: mapl {speed[0]:.2f}, TRL {speed[1]:.2f} pairs/s", flush=True)
    table = {side: [rates(settings, case, run) for run in runs[side]] for side in runs}
    def ratio(key, upside_down=False):
        pairs = zip(table["mapl"], table["trl"])
        return [t[key] / m[key] if upside_down else m[key] / t[key] for m, t in pairs]

    return {
        "case": name,
        "reference": "cached" if cached else "online",
        "pairs_per_update": case["pairs_per_update"],
        "table": table,
        "ratios": {
            "pairs_per_s": ratio("pairs_per_s"),
            "cpu_s": ratio("cpu_s_per_step", True),
            "peak_memory": ratio("peak_mib"),
            "wall": ratio("wall_s", True),
        },
        "work": work_per_step(settings, case, cached, runs["mapl"][-1], runs["trl"][-1]),
        "agreement": {key: max(f[key] for f in found) for key in found[0]},
        "runs": runs,
    }


def markdown(results):
    lines = [
        "| case | side | pairs/s | s per step | CPU-s per step | peak MiB | process s | CPU cores used by others |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        label = f"{result['case']}, {result['reference']} reference"
        for side in ("mapl", "trl"):
            rows = result["table"][side]
            cells = [("pairs_per_s", 2), ("step_s", 2), ("cpu_s_per_step", 2), ("peak_mib", 0), ("wall_s", 1)]
            cells.append(("others", 2))
            text = " | ".join(spread([row[key] for row in rows], digits) for key, digits in cells)
            lines.append(f"| {label} | {side} | {text} |")
        r = result["ratios"]
        lines.append(
            f"| {label} | ratio | **{spread(r['pairs_per_s'], 2)}** |  | {spread(r['cpu_s'], 2)} "
            f"| {spread(r['peak_memory'], 3)} | {spread(r['wall'], 2)} |  |"
        )
    lines += [
        "",
        "| case | side | pairs per step | tokens | head rows | GFLOP | GFLOP/s | torch f32 GFLOP/s | torch bf16 GFLOP/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        label = f"{result['case']}, {result['reference']} reference"
        ceilings = [statistics.median(run[key] for run in result["runs"]["trl"]) for key in ("sgemm_gflops", "bf16_gflops")]
        for side in ("mapl", "trl"):
            work = result["work"][side]
            rate = work["gflop"] / statistics.median(row["step_s"] for row in result["table"][side])
            lines.append(
                f"| {label} | {side} | {result['pairs_per_update']} | {work['tokens']:.0f} | {work['head_rows']:.0f} "
                f"| {work['gflop']:.0f} | {rate:.1f} | {ceilings[0]:.0f} | {ceilings[1]:.0f} |"
            )
    lines += ["", "Largest relative differences between the sides:"]
    for result in results:
        a = result["agreement"]
        loss = f"losses {a['loss']:.1e}, " if "loss" in a else ""
        lines.append(f"- {result['case']}, {result['reference']}: {loss}first log-probs {a['logp']:.1e}")
    return "\n".join(lines)


def probe(settings, cases):
    """Times TRL's settings against each other, so that the comparison can use the fastest."""
    large_blocks = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    variants = {
        "sdpa": {"attention": "sdpa"},
        "eager": {"attention": "eager"},
        "sdpa, bf16 autocast": {"attention": "sdpa", "dtype": "autocast"},
        "sdpa, bf16 weights": {"attention": "sdpa", "dtype": "bf16"},
        "sdpa, gradient checkpointing": {"attention": "sdpa", "checkpointing": True},
        "sdpa, batch 1, accumulated": {"attention": "sdpa", "batch": 1},
        "sdpa, allocator keeps its memory": {"attention": "sdpa", "env": large_blocks},
    }
    print("| case | TRL | pairs/s | CPU-s per step | peak MiB |\n|---|---|---:|---:|---:|")
    found = []
    for name in settings.cases:
        case, rows = cases[name], {variant: [] for variant in variants}
        for _ in range(settings.repeats):
            for variant, overrides in variants.items():
                run = run_trl(settings, case, False, settings.work / "runs/probe", **overrides)
                rows[variant].append(rates(settings, case, run))
        for variant, values in rows.items():
            cells = [("pairs_per_s", 2), ("cpu_s_per_step", 2), ("peak_mib", 0)]
            text = " | ".join(spread([row[key] for row in values], digits) for key, digits in cells)
            print(f"| {name} | {variant} | {text} |", flush=True)
        found.append({"case": name, "variants": rows})
    return found


def save(settings, machine, results):
    if settings.json:
        shown = {key: str(value) for key, value in vars(settings).items()}
        settings.json.write_text(json.dumps({"machine": machine, "settings": shown, "results": results}, indent=1))


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    settings = arguments()
    inter_losses = [name.removeprefix("groups-") for name in settings.cases if name.startswith("groups-")]
    cases, settings.model = prepare(
        settings.mapl, settings.data, settings.work, inter_losses, settings.batch, settings.updates
    )
    describe(settings, cases)
    machine = f"{processor()}, {os.cpu_count()} logical CPUs, {settings.threads} threads per side; mapl in {settings.dtype}, TRL in {settings.trl_dtype}"
    print(f"{machine}; load before {os.getloadavg()[0]:.1f}; {settings.warmup} + {settings.steps} updates per run\n")
    if settings.probe:
        results = probe(settings, cases)
    else:
        todo = [(name, reference == "cached") for name in settings.cases for reference in settings.reference]
        results = []
        for name, cached in todo:
            results.append(measure(settings, name, cases[name], cached))
            # An interrupted measurement keeps its finished cases.
            save(settings, machine, results)
        print(f"\n{markdown(results)}")
        others = max(row["others"] for result in results for rows in result["table"].values() for row in rows)
        if others > QUIET:
            print(
                f"\nNOT QUIET: other processes used up to {others:.2f} CPU cores. Only the CPU-s ratio is meaningful; "
                "sharing cores slows TRL's wall-clock time more, so the ratio of pairs/s favours mapl."
            )
    save(settings, machine, results)


if __name__ == "__main__":
    main()
