"""Runs each side in a separate process and collects its measurements.

A run is `{"ends": [s], "cpu": [s], "losses": [...], "logps": [(chosen, rejected)], "wall_s", "peak_mib", ...}`. `ends` and
`cpu` are wall-clock time and user + system time at the end of every update.
"""

import json
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
POLL_S = 0.004


def environment(threads):
    names = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONDONTWRITEBYTECODE": "1"}


def busy_seconds():
    """Busy seconds of all CPU cores of the machine combined."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def cpu_seconds(pid):
    """User and system time of a process and its threads so far; None after its end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def spawn(command, log, threads, extra_env=None, watch=None):
    """Runs a command to its end. `watch` is a file of JSON lines; CPU time is recorded when a line is added to it."""
    began, busy, stamps, size = time.monotonic(), busy_seconds(), [], 0
    with open(log, "w", encoding="utf-8") as out:
        env = {**environment(threads), **(extra_env or {})}
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, env=env)
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        if watch is not None:
            grown = watch.stat().st_size if watch.exists() else 0
            if grown != size:
                size, cpu = grown, cpu_seconds(process.pid)
                lines = watch.read_bytes().count(b"\n")
                stamps += [cpu] * (lines - len(stamps))
        time.sleep(POLL_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = Path(log).read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed with {process.returncode}; the end of {log}:\n{tail}")
    wall, own = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    return {
        "wall_s": wall,
        "process_cpu_s": own,
        # CPU cores used by other processes, on average.
        "others": max(0.0, busy_seconds() - busy - own) / wall,
        "peak_mib": usage.ru_maxrss / 1024,
    }, stamps


def run_mapl(settings, case, cached, folder):
    """One `mapl dpo` run in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = folder / "run"
    command = [
        settings.mapl, "dpo", "--model", settings.model, "--train-file", case["mapl"], "--output-dir", out,
        "--device", "cpu", "--dtype", settings.dtype, "--no-shuffle", "--max-steps", settings.updates,
        "--per-device-train-batch-size", settings.batch, "--max-length", settings.max_length,
        "--on-too-long", "truncate-completion-right", "--learning-rate", settings.learning_rate,
        "--lr-scheduler-type", "constant", "--weight-decay", 0, "--max-grad-norm", 1, "--beta", settings.beta,
        *case.get("mapl_flags", []), *(settings.mapl_cached_flags if cached else []), *settings.mapl_flags,
    ]  # fmt: skip
    metrics = out / "metrics.jsonl"
    run, stamps = spawn(command, folder / "log.txt", settings.threads, watch=metrics)
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    stamps += [run["process_cpu_s"]] * (len(events) - len(stamps))
    kept = [(event, cpu) for event, cpu in zip(events, stamps) if event["kind"] == "train"]
    steps = [event for event, _ in kept]
    counts = [0, *(step["num_tokens"] for step in steps)]
    shutil.rmtree(out)
    kinds = ("base", "intra", "inter")
    return run | {
        "command": [str(c) for c in command],
        "ends": [step["time"] for step in steps],
        "cpu": [cpu for _, cpu in kept],
        "step_seconds": [step["step_seconds"] for step in steps],
        "losses": [step["loss"] for step in steps],
        "kind_losses": [{k: step[f"loss/{k}"] for k in kinds if f"loss/{k}" in step} for step in steps],
        "logps": [(step["logps/chosen"], step["logps/rejected"]) for step in steps],
        "tokens": [after - before for before, after in zip(counts, counts[1:])],
        "comparisons": [round(sum(step.get(f"comparisons/{k}", 0) for k in kinds)) for step in steps],
    }


def run_trl(settings, case, cached, folder, **overrides):
    """One run of the TRL worker in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    batch = overrides.get("batch", settings.batch)
    accumulation, rest = divmod(case["pairs_per_update"], batch)
    if rest:
        raise SystemExit(f"{case['pairs_per_update']} pairs per update do not divide into batches of {batch}")
    command = [
        settings.python, Path(__file__).with_name("trl_dpo.py"), "--model", settings.model, "--rows", case["trl"],
        "--result", folder / "result.json", "--scratch", folder / "scratch", "--threads", settings.threads,
        "--updates", overrides.get("updates", settings.updates), "--batch", batch, "--accumulation", accumulation,
        "--learning-rate", settings.learning_rate, "--beta", settings.beta, "--max-length", settings.max_length,
        "--attention", overrides.get("attention", settings.trl_attention),
        "--dtype", overrides.get("dtype", settings.trl_dtype),
        *(["--gradient-checkpointing"] if overrides.get("checkpointing") else []),
        *(["--cached-reference"] if cached else []),
    ]  # fmt: skip
    scratch = folder / "scratch"
    scratch.mkdir()
    env = {"HF_DATASETS_CACHE": str(scratch), "TMPDIR": str(scratch), **overrides.get("env", {})}
    run, _ = spawn(command, folder / "log.txt", settings.threads, env)
    result = json.loads((folder / "result.json").read_text())
    shutil.rmtree(scratch)
    updates = result.pop("updates")
    for name in ("tokens", "padded_tokens", "head_rows", "response_tokens", "pairs"):
        result[name] = [update[name] for update in updates]
    # The worker's own peak, without the GEMM that it times at the end.
    run["peak_mib"] = result.pop("peak_mib")
    return run | result | {
        "command": [str(c) for c in command],
        "ends": [update["end"] for update in updates],
        "cpu": [update["cpu"] for update in updates],
        "losses": [update["loss"] for update in updates],
        "logps": [update["logps"] for update in updates],
    }


def expected_logps(settings, case):
    """Mean log-probs of the chosen and rejected sides of the first update's pair rows, by `mapl score`."""
    out = Path(settings.work) / "scores.jsonl"
    command = [settings.mapl, "score", "--model", settings.model, "--input", case["first"], "--output", out]
    command += ["--device", "cpu", "--dtype", settings.dtype]
    spawn(command, Path(settings.work) / "score.log", settings.threads)
    table = {}
    for number, line in enumerate(out.read_text().splitlines()):
        for sequence in json.loads(line)["sequences"]:
            table[f"{number}:{sequence['prompt']}:{sequence['response']}"] = sequence["logp"]
    rows = [json.loads(line) for line in Path(case["trl"]).read_text().splitlines()[: case["pairs_per_update"]]]
    return [math.fsum(table[row[side]] for row in rows) / len(rows) for side in ("chosen_key", "rejected_key")]
