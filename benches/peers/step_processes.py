"""Processes of steps.py. Every run of a side is a separate process with a time limit, whose peak memory is measured.

A process that fails, or takes too long, raises with the line of its output that names the error.
"""

import json
import os
import re
import signal
import subprocess
import time

POLL_SECONDS = 0.02
# Folder of the start model of a method.
MODELS = {"dpo": "model", "reward": "reward"}


class OutOfTime(RuntimeError):
    """The time limit of the run is reached."""


def call(args, command, log, **environment):
    """Runs a command, output to a file. Kills it and its children if it takes too long. Returns its peak resident memory in MiB."""
    left = args.deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime("no time left")
    ends, late = time.monotonic() + min(left, args.patience), False
    with open(log, "w", encoding="utf-8") as out:
        env = os.environ | environment
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        if not late and time.monotonic() > ends:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    if late:
        raise OutOfTime("no time left") if left <= args.patience else RuntimeError(f"took longer than {args.patience:g} s")
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        # The line that names the error; lines of advice may follow it.
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|error)\b", line)]
        raise RuntimeError(f"exit code {process.returncode}: {(named or lines)[-1].strip()[:400]}")
    return usage.ru_maxrss / 1024


def run_mapl(args, method, unit, folder, weights, length):
    """One run of `mapl`: seconds of the timed updates, first loss and log-probs, peak memory."""
    out = args.work / "mapl-run"
    command = [
        args.mapl, method, "--model", folder / MODELS[method], "--train-file", folder / f"{unit}.jsonl", "--output-dir", out, "--overwrite-output-dir",
        "--device", args.device, "--dtype", args.dtype, "--no-shuffle", "--max-steps", args.steps + args.warmup,
        "--per-device-train-batch-size", args.pairs if unit == "pairs" else args.quads,
        "--max-length", length, "--learning-rate", "1e-6", "--lr-scheduler-type", "constant", "--weight-decay", 0,
        "--logging-steps", 1, "--quiet", *(word for kind, weight in weights.items() for word in (f"--{kind}-weight", weight)),
    ]  # fmt: skip
    peak = call(args, command, args.work / f"{method}-{unit}-mapl.log", RAYON_NUM_THREADS=str(args.threads))
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "train"]
    ends = [event["time"] for event in steps]
    # On a GPU, the peak is the device memory that the process has taken.
    taken = next((event["taken_bytes"] / 2**20 for event in events if event.get("event") == "memory"), None)
    return {
        "seconds": [b - a for a, b in zip(ends, ends[1:])][args.warmup - 1 :],
        "first_loss": steps[0]["loss"],
        "first_logps": [steps[0].get("logps/chosen"), steps[0].get("logps/rejected")],
        "peak_mib": taken if args.device == "cuda" else peak,
    }


def run_peer(args, method, unit, side, folder, script):
    """One run of a side other than mapl: `script` runs it in a separate process."""
    result = args.work / "peer.json"
    result.unlink(missing_ok=True)
    numbers = ("pairs", "quads", "prompt", "instruction", "response", "steps", "warmup", "threads")
    more = [word for name in numbers for word in (f"--{name}", getattr(args, name))] + ["--no-compile"] * args.no_compile
    task = json.dumps([method, unit, side, str(folder), str(result)])
    command = [args.python, "-B", script, "--device", args.device, "--dtype", args.dtype, "--work", args.work, *more, "--task", task]
    log = args.work / f"{method}-{unit}-{side.replace(' ', '-')}.log"
    peak = call(args, command, log, HF_HUB_OFFLINE="1", TQDM_DISABLE="1", HF_HOME=str(args.work / "hf"))
    return {"peak_mib": peak} | json.loads(result.read_text())


def scores(args, method, unit, folder):
    """Log-probs or rewards of the sequences of the first update by `mapl score`, one table by (prompt, response) for every group."""
    out = args.work / "scores.jsonl"
    command = [args.mapl, "score", "--model", folder / MODELS[method], "--input", folder / f"{unit}.first.jsonl", "--output", out]
    log = args.work / f"{method}-{unit}-score.log"
    call(args, [*command, "--device", args.device, "--dtype", args.dtype], log, RAYON_NUM_THREADS=str(args.threads))
    lines = [json.loads(line)["sequences"] for line in out.read_text().splitlines()]
    value = {"dpo": "logp", "reward": "reward"}[method]
    return [{(s["prompt"], s["response"]): s[value] for s in sequences} for sequences in lines]
