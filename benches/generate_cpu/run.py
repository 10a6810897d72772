"""Alternates `mapl generate` with transformers' generate on the CPU and prints a table; benches/README.md describes the method.

Both sides answer the same prompts greedily in f32. Their tokens are compared before any ratio is printed. Needs only the
standard library; transformers is called through `--python`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Where both sides choose different tokens, their two largest logits must be this close.
TIE = 1e-4
# CPU cores that other programs may use while wall-clock times are still meaningful.
QUIET = 0.1


def arguments():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of an instruct model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines file of rows with a prompt")
    parser.add_argument("--python", required=True, help="Python with the packages of ../trl_cpu/requirements.txt")
    parser.add_argument("--work", type=Path, required=True, help="folder for all output files")
    parser.add_argument("--mapl", type=Path, default=root / "target/release/mapl")
    parser.add_argument("--json", type=Path, help="JSON file for all measurements")
    parser.add_argument("--count", type=int, default=32, help="prompts, taken at equal distances from the file")
    parser.add_argument("--new-tokens", type=int, default=256, help="most new tokens of a text")
    parser.add_argument("--unused-token", type=int, help="id that the model never generates: adds a case in which it is the only "
                        "end id, so that every text has all new tokens")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="alternations")
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    for name in ("count", "new_tokens", "repeats", "threads"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    settings.work, settings.mapl = settings.work.resolve(), settings.mapl.resolve()
    if not settings.mapl.is_file():
        parser.error(f"{settings.mapl} does not exist; build it with cargo build --release")
    return settings


def busy_seconds():
    """Busy seconds of all CPU cores of the machine combined."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def spawn(command, log, threads):
    """Runs a command to its end. Returns its wall-clock time, its peak memory and the cores that others used."""
    names = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    env = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONDONTWRITEBYTECODE": "1"}
    began, busy = time.monotonic(), busy_seconds()
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = Path(log).read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed with {process.returncode}; the end of {log}:\n{tail}")
    wall, own = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    others = max(0.0, busy_seconds() - busy - own) / wall
    return {"wall_s": wall, "cpu_s": own, "others": others, "peak_mib": usage.ru_maxrss / 1024}


def run_mapl(settings, model, prompts):
    out = settings.work / "mapl.jsonl"
    command = [
        settings.mapl, "generate", "--model", model, "--input", prompts, "--output", out, "--apply-chat-template",
        "--max-new-tokens", settings.new_tokens, "--batch-size", settings.count, "--device", "cpu", "--dtype", "f32",
    ]  # fmt: skip
    run = spawn(command, settings.work / "mapl.log", settings.threads)
    run["tokens"] = [json.loads(line)["tokens"] for line in out.read_text().splitlines()]
    # The process loads the model too: there is no shorter time.
    run["generate_s"] = run["wall_s"]
    return run


def run_transformers(settings, model, prompts, *further):
    result = settings.work / "transformers.json"
    command = [
        settings.python, Path(__file__).with_name("transformers_side.py"), "--model", model, "--prompts", prompts,
        "--result", result, "--threads", settings.threads, "--new-tokens", settings.new_tokens, *further,
    ]  # fmt: skip
    run = spawn(command, settings.work / "transformers.log", settings.threads)
    return run | json.loads(result.read_text())


def without_ends(model, folder, unused):
    """Copy of a model folder with one end id, which the model never generates."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    tokens = {t["id"]: t["content"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    if unused not in tokens:
        raise SystemExit(f"--unused-token {unused}: not an added token of {model / 'tokenizer.json'}")
    for name, values in (
        ("config.json", {"eos_token_id": unused}),
        ("generation_config.json", {"eos_token_id": unused}),
        ("tokenizer_config.json", {"eos_token": tokens[unused]}),
    ):
        path = folder / name
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def compare(settings, model, prompts, mapl, transformers):
    """Number of equal texts. Raises if a text differs other than by a tie of its two largest logits."""
    if len(mapl["tokens"]) != len(transformers["tokens"]):
        raise SystemExit(f"{len(mapl['tokens'])} and {len(transformers['tokens'])} texts")
    differing = []
    for row, (ours, theirs) in enumerate(zip(mapl["tokens"], transformers["tokens"])):
        if ours != theirs:
            same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
            if same is None:
                raise SystemExit(f"text {row} ends after {len(ours)} tokens, in transformers after {len(theirs)}")
            differing.append({"row": row, "tokens": theirs[:same], "next": sorted([ours[same], theirs[same]])})
    gaps = []
    if differing:
        check = settings.work / "check.json"
        check.write_text(json.dumps(differing))
        for text, found in zip(differing, run_transformers(settings, model, prompts, "--check", check)["largest"]):
            gaps.append(found["gap"])
            if sorted(found["ids"]) != text["next"] or found["gap"] > TIE:
                raise SystemExit(f"text {text['row']} differs at token {len(text['tokens'])}: {text['next']}, largest {found}")
    return {"texts": len(mapl["tokens"]), "equal": len(mapl["tokens"]) - len(differing), "gaps": gaps}


def measure(settings, name, model, prompts, new_tokens):
    """Runs of one case. `new_tokens` is the number of tokens of every text, if it is known."""
    runs, agreements = {"mapl": [], "transformers": []}, []
    for repeat in range(settings.repeats):
        # A B, then B A: neither side always runs second.
        for side in ("mapl", "transformers") if repeat % 2 == 0 else ("transformers", "mapl"):
            runs[side].append((run_mapl if side == "mapl" else run_transformers)(settings, model, prompts))
        agreement = compare(settings, model, prompts, runs["mapl"][-1], runs["transformers"][-1])
        agreements.append(agreement)
        rate = run_transformers(settings, model, prompts, "--gemm")["sgemm_gflops"]
        runs["transformers"][-1]["sgemm_gflops"] = rate
        for side in runs.values():
            run = side[-1]
            lengths = [len(tokens) for tokens in run.pop("tokens")]
            if new_tokens is not None and set(lengths) != {new_tokens}:
                raise SystemExit(f"{name}: texts of {min(lengths)} to {max(lengths)} tokens; is the token of --unused-token used?")
            run["new_tokens"] = sum(lengths)
            run["tokens_per_s"] = run["new_tokens"] / run["generate_s"]
        speeds = ", ".join(f"{side} {values[-1]['tokens_per_s']:.0f} tokens/s" for side, values in runs.items())
        print(f"{name}, repeat {repeat + 1}: {speeds}; {agreement['equal']} of {agreement['texts']} texts equal", flush=True)
    def ratio(key):
        return [m[key] / t[key] for m, t in zip(runs["mapl"], runs["transformers"])]

    ratios = {"tokens_per_s": ratio("tokens_per_s"), "peak_memory": ratio("peak_mib")}
    ratios["process_s"] = [1 / r for r in ratio("wall_s")]
    return {"case": name, "runs": runs, "ratios": ratios, "agreement": agreements}


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def markdown(results, flop_per_token):
    lines = [
        "| case | side | new tokens | tokens/s | GFLOP/s | torch f32 GFLOP/s | process s | peak MiB | CPU cores used by others |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        ceiling = statistics.median(run["sgemm_gflops"] for run in result["runs"]["transformers"])
        for side, runs in result["runs"].items():
            rate = statistics.median(run["tokens_per_s"] for run in runs) * flop_per_token / 1e9
            cells = [("tokens_per_s", 0), ("wall_s", 1), ("peak_mib", 0), ("others", 2)]
            speed, wall, peak, others = (spread([run[key] for run in runs], digits) for key, digits in cells)
            lines.append(
                f"| {result['case']} | {side} | {runs[0]['new_tokens']} | {speed} | {rate:.0f} | {ceiling:.0f} | {wall} | {peak} | {others} |"
            )
        r = result["ratios"]
        lines.append(
            f"| {result['case']} | ratio | | **{spread(r['tokens_per_s'], 2)}** | | | {spread(r['process_s'], 2)} "
            f"| {spread(r['peak_memory'], 3)} | |"
        )
    return "\n".join(lines)


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    settings = arguments()
    settings.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in settings.prompts.read_text().splitlines() if line.strip()]
    if len(rows) < settings.count:
        raise SystemExit(f"{settings.prompts} has {len(rows)} rows, --count {settings.count}")
    chosen = [rows[i * len(rows) // settings.count] for i in range(settings.count)]
    if len({row["prompt"] for row in chosen}) < len(chosen):
        raise SystemExit(f"{settings.prompts}: two of the chosen rows have the same prompt, which mapl would answer once")
    prompts = settings.work / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in chosen))
    machine = f"{processor()}, {os.cpu_count()} logical CPUs, {settings.threads} threads per side"
    print(f"{machine}; load before {os.getloadavg()[0]:.1f}; {settings.count} prompts, at most {settings.new_tokens} new tokens\n")
    models = [("the model's ends", settings.model, None)]
    if settings.unused_token is not None:
        folder = without_ends(settings.model, settings.work / "model", settings.unused_token)
        models.append((f"{settings.new_tokens} tokens each", folder, settings.new_tokens))
    results = []
    for name, model, new_tokens in models:
        results.append(measure(settings, name, model, prompts, new_tokens))
        if settings.json:
            shown = {key: str(value) for key, value in vars(settings).items()}
            settings.json.write_text(json.dumps({"machine": machine, "settings": shown, "results": results}, indent=1))
    print(f"\n{markdown(results, results[0]['runs']['transformers'][0]['flop_per_token'])}")
    others = max(run["others"] for result in results for runs in result["runs"].values() for run in runs)
    if others > QUIET:
        print(f"\nNOT QUIET: other processes used up to {others:.2f} CPU cores, so no time above says anything.")


if __name__ == "__main__":
    main()
