"""The GPU suite: runs what pack.py built and prints one table.

python3 run.py [--device cuda|emulator] [--out DIR] [--strict] [--seconds N] [--rows FILE] [--models NAMES] [--stages NAME...]

Stages, in order
  device      the device as seen by the binary and by nvidia-smi
  new         the kernels for Hopper that no record has yet: their tests, then under compute-sanitizer
  step        a DPO step of the shape of Qwen2.5-0.5B by op, with the head whole and in chunks, beside the prediction
  attention   attention, then FlashAttention, cuDNN, FlexAttention (causal and trees) and MagiAttention at the same shapes
  steps       DPO and reward steps of mapl, torch and TRL on pairs, then on MAPL quads
  models      GEMMs and heads of Qwen2.5-1.5B and Llama-3.1-8B
  rows        row-wise ops, then torch's
  ops         every op against the f64 reference and every primitive against its tables, only on this device
  sanitizer   compute-sanitizer memcheck, racecheck, initcheck and synccheck on small tests of every kernel file
  train       20 steps of reward and DPO in f32 and bf16 compared with the CPU; in bf16 also repeated, without CUDA graphs, and
              with gradient checkpointing
  nccl        one rank that joins NCCL beside one that is alone: 20 steps of reward and DPO, then DPO steps of the shape of Qwen2.5-0.5B
              in alternation; the same bytes, and the cost of a step beside its goal
  quickstart  the quick start on the device
  speed       tokens per second and memory use compared with the plan, with and without CUDA graphs: shape of Qwen2.5-0.5B,
              random weights

Every stage has a limit of its own, so that ten minutes are enough for the stages up to `steps`. The stages that time ops and steps
verify first, and write rows to bench-*.csv (benches/README.md); libraries that are not installed are rows with the reason.
A stage that cannot run gives a row with the reason; with --strict such a row is a failure. Writes suite.json, suite.txt and logs
to DIR. Requires only Python 3.10. Exits with 1 if anything failed.
"""

import argparse
import filecmp
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The peer scripts are next to this file in the package, and in benches/peers in a checkout.
sys.path += [str(HERE), str(HERE.parent.parent / "benches" / "peers")]
import steps  # noqa: E402

# Stages in order, with the seconds that each may take.
LIMITS = {"device": 15, "new": 120, "step": 90, "attention": 105, "steps": 230, "models": 120, "rows": 120, "ops": 300, "sanitizer": 300,
          "train": 300, "nccl": 200, "quickstart": 400, "speed": 200}
STAGES = list(LIMITS)
# Tests of the kernels that were changed since the last record.
NEW = ["backends::attention_sm90", "backends::rope_sm90", "backends::head_sm90::gradients_", "backends::head_sm90::forward_and",
       "backends::head_preference::every_number_of", "backends::linear_sm90::gated_"]
ROW_WISE = "norm_,layer_norm_,qk_norm_,rope_,bias_,embedding_,gelu_,scale,glu_,grad_norm,adamw,segment_,reward_head,preference_"
# Small tests of every kernel file: the sanitizer slows kernels down a hundredfold.
SMALL = ["backends::segment", "backends::preference", "backends::embedding", "backends::rope", "backends::glu", "backends::reward",
         "backends::optim", "backends::head_logits", "backends::norm::equal_", "backends::attention::equal_",
         "backends::head::huge_and_infinite", "backends::head_preference::rows_of_weight", "backends::linear::gemms_of_minimum_size",
         "backends::linear::gated_", "primitives::lanes_exchange"]
# Tolerance of losses compared with the CPU, relative to max(1, loss). f32: order of summation. bf16: see tests/cli/devices.rs.
NEAR = {"f32": 1e-4, "bf16": 2e-2}
# Target for the cost of NCCL on one rank, in percent of a step.
NCCL_GOAL = 1.0


def library_path(pattern):
    """LD_LIBRARY_PATH with the folders of NVIDIA's Python packages, which the loader does not search, and of CUDA."""
    folders = [str(path.parent) for path in Path(sys.prefix).glob(f"lib/python*/*-packages/nvidia/*/lib/{pattern}")]
    folders += [str(path) for path in Path("/usr/local").glob("cuda*/lib64")]
    return ":".join([*dict.fromkeys(folders), os.environ.get("LD_LIBRARY_PATH", "")])


class Suite:
    def __init__(self, options):
        self.options = options
        self.out = Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = self.out / "work"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.rows = []
        self.facts = json.loads((HERE / "source.json").read_text()) if (HERE / "source.json").exists() else {}
        self.began = time.monotonic()
        self.stage_ends = self.began + self.options.seconds

    def left(self):
        """Seconds that the current stage may still take."""
        now = time.monotonic()
        return max(1.0, min(self.options.seconds - (now - self.began), self.stage_ends - now))

    def row(self, stage, name, outcome, detail="", seconds=0.0):
        self.rows.append({"stage": stage, "name": name, "outcome": outcome, "detail": detail, "seconds": round(seconds, 1)})
        print(f"{stage:<11} {name:<34} {outcome:<8} {seconds:6.1f} s  {detail}", flush=True)

    def call(self, log, command, **environment):
        """Runs a command and returns its exit code (None after a timeout), output and seconds."""
        began = time.monotonic()
        env = {**os.environ, "NO_COLOR": "1", "CI": "1", **environment}
        try:
            done = subprocess.run([str(word) for word in command], cwd=self.work, env=env, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, errors="replace", timeout=self.left())
            code, text = done.returncode, done.stdout
        except subprocess.TimeoutExpired as stopped:
            code, text = None, (stopped.stdout or b"").decode(errors="replace") if stopped.stdout else ""
        except FileNotFoundError as missing:
            code, text = 127, str(missing)
        (self.out / f"{log}.log").write_text(text)
        return code, text, time.monotonic() - began

    def mapl(self, log, words, **environment):
        return self.call(log, [HERE / "mapl", *words.split()], **environment)

    # Stages

    def device(self):
        code, text, seconds = self.call("env", [HERE / "mapl", "env", "--json"])
        try:
            said = json.loads(text)["devices"][self.options.device]
        except (ValueError, KeyError):
            return self.row("device", "mapl env", "failed", text.strip()[-200:], seconds)
        self.facts["device"] = said
        present = not said.startswith(("no CUDA device", "this build"))
        self.row("device", self.options.device, "ok" if present else "failed", said, seconds)
        query = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu,memory.used,memory.total"
        code, text, seconds = self.call("nvidia-smi", ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
        if code == 0:
            self.facts["nvidia_smi"] = dict(zip(query.split(","), [part.strip() for part in text.strip().split(",")]))
        self.row("device", "nvidia-smi", "ok" if code == 0 else "skipped", text.strip()[-200:], seconds)
        return present

    def tests(self, stage, name, log, prefix, filters, threads):
        environment = {"MAPL_TEST_DEVICES": self.options.device}
        environment["MAPL_REQUIRE_GPU" if self.options.device == "cuda" else "MAPL_REQUIRE_EMULATOR"] = "1"
        command = [*prefix, HERE / "ops", *filters, f"--test-threads={threads}", "--show-output"]
        code, text, seconds = self.call(log, command, **environment)
        passed = sum(int(n) for n in re.findall(r"(\d+) passed", text))
        failed = re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)
        skips = len(re.findall(r"SKIPPED", text))
        detail = f"{passed} tests passed"
        if failed:
            detail += f", failed: {' '.join(failed[:8])}"
        if skips:
            detail += f", {skips} parts skipped"
        if code is None:
            return self.row(stage, name, "failed", "timed out; " + detail, seconds)
        if code != 0 or passed == 0:
            return self.row(stage, name, "failed", f"{detail}; exit code {code}", seconds)
        self.row(stage, name, "skipped" if skips else "ok", detail, seconds)

    def new(self):
        self.tests("new", "kernels without a record", "new", [], NEW, 4)
        for name in ["memcheck", "racecheck"]:
            self.sanitize("new", name, NEW)

    def ops(self):
        self.tests("ops", "every op and primitive", "ops", [], ["backends::", "primitives::"], 4)

    def sanitize(self, stage, name, filters):
        tool = shutil.which("compute-sanitizer") or next(
            (str(p) for p in Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None)
        if self.options.device != "cuda" or tool is None:
            why = "requires a GPU" if self.options.device != "cuda" else "no compute-sanitizer on this machine"
            return self.row(stage, name, "skipped", why)
        prefix = [tool, "--tool", name, "--error-exitcode", "99"]
        self.tests(stage, name, f"{stage}-{name}", prefix, filters, 1)

    def sanitizer(self):
        for name in ["memcheck", "racecheck", "initcheck", "synccheck"]:
            self.sanitize("sanitizer", name, SMALL)

    def steps_of(self, run):
        lines = (self.work / run / "metrics.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == "train"]

    def losses(self, run):
        return [step["loss"] for step in self.steps_of(run)]

    def material(self):
        """Creates rows and an initial model by a very short quick start on the CPU."""
        if not (self.work / "q" / "sft" / "model.safetensors").exists():
            code, text, seconds = self.mapl("material", "quickstart --scale 0.001 --output-dir q --device cpu")
            if code != 0:
                self.row("train", "material", "failed", text.strip()[-300:], seconds)
                return False
        return True

    def train(self):
        if not self.material():
            return
        groups = 8 if self.options.device == "cuda" else 1
        common = (f"--model q/sft --train-file q/train-mapl.jsonl --max-steps 20 --warmup-steps 5 --objective rows "
                  f"--per-device-train-batch-size {groups} --learning-rate 6e-4 --save-strategy no --overwrite-output-dir")
        device = self.options.device
        for method in ["reward", "dpo"]:
            runs = {"cpu": "--device cpu"}
            for dtype in ["f32", "bf16"]:
                runs[dtype] = f"--device {device} --dtype {dtype}"
            runs["again"] = runs["bf16"]
            runs["unrecorded"] = runs["bf16"] + " --cuda-graph off"
            runs["recomputed"] = runs["bf16"] + " --gradient-checkpointing"
            good = {}
            for name, flags in runs.items():
                run = f"{method}-{name}"
                code, text, seconds = self.mapl(run, f"{method} {common} --output-dir {run} {flags}")
                good[name] = code == 0
                if code != 0:
                    self.row("train", run, "failed", f"exit code {code}: {text.strip()[-300:]}", seconds)
            if not good["cpu"]:
                continue
            cpu = self.losses(f"{method}-cpu")
            for dtype, near in NEAR.items():
                if good[dtype]:
                    got = self.losses(f"{method}-{dtype}")
                    apart = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(got, cpu))
                    fine = len(got) == len(cpu) == 20 and apart < near
                    self.row("train", f"{method} {dtype} against cpu", "ok" if fine else "failed", f"{apart:.1e} of {near:.0e}")
            for name in ["again", "unrecorded", "recomputed"]:
                if good[name] and good["bf16"]:
                    files = [(self.work / f"{method}-{run}" / "model.safetensors").read_bytes() for run in ["bf16", name]]
                    same = files[0] == files[1]
                    self.row("train", f"{method} bf16 {name}", "ok" if same else "failed",
                             "bitwise equal" if same else "weights differ from the first run")

    def nccl(self):
        """A run with one rank over NCCL, compared with a run without NCCL. Without a GPU neither uses NCCL, which only rehearses the stage."""
        cuda = self.options.device == "cuda"
        environment = {"LD_LIBRARY_PATH": library_path("libnccl.so.2")}
        code, text, seconds = self.mapl("nccl-env", "env --json", **environment)
        said = json.loads(text)["ranks"]["nccl"] if code == 0 else f"exit code {code}: {text.strip()[-300:]}"
        found = code == 0 and not said.startswith("none")
        self.row("nccl", "library", "failed" if code != 0 else "ok" if found else "skipped", said, seconds)
        if (cuda and not found) or not self.material():
            return
        joins = " --nccl-init env" if cuda else ""
        updates, groups, accumulation = (20, 8, 2) if cuda else (2, 1, 1)
        for method, dtype in [("reward", "f32"), ("dpo", "bf16")]:
            words = (f"--model q/sft --train-file q/train-mapl.jsonl --max-steps {updates} --objective rows --learning-rate 6e-4 "
                     f"--per-device-train-batch-size {groups} --gradient-accumulation-steps {accumulation} --save-strategy no "
                     f"--device {self.options.device} --dtype {dtype}")
            sides = {"alone": "", "joined": joins} | ({"joined sharded": joins + " --shard-optimizer on"} if cuda else {})
            runs = {side: f"nccl-{method}-{side.replace(' ', '-')}" for side in sides}
            for side, flags in sides.items():
                code, text, seconds = self.mapl(runs[side], f"{method} {words} --output-dir {runs[side]}{flags}", **environment)
                if code != 0:
                    self.row("nccl", f"{method} {dtype} {side}", "failed", f"exit code {code}: {text.strip()[-300:]}", seconds)
                    break
                if side != "alone":
                    self.same("nccl", f"{method} {dtype} {side}", runs["alone"], runs[side], updates)
        self.cost_of_nccl(joins, environment)

    def same(self, stage, name, one, other, updates):
        """Compares every number of the steps of two runs, times aside, and their final weights."""
        numbers = [[{key: value for key, value in step.items() if key not in ("time", "step_seconds")} for step in self.steps_of(run)]
                   for run in [one, other]]
        files = [self.work / run / "model.safetensors" for run in [one, other]]
        apart = [what for what, differs in {
            f"{len(numbers[0])} and {len(numbers[1])} steps of {updates}": not len(numbers[0]) == len(numbers[1]) == updates,
            "numbers of the steps differ": numbers[0] != numbers[1],
            "weights differ": not filecmp.cmp(*files, shallow=False)}.items() if differs]
        self.row(stage, name, "failed" if apart else "ok", "; ".join(apart) or f"{updates} steps and the weights bitwise equal")

    def cost_of_nccl(self, joins, environment):
        """Times steps with and without NCCL in alternation, and without CUDA graphs, because with NCCL the last backward is not a graph."""
        updates, warmup = (20, 3) if joins else (3, 1)
        material = self.pairs_of("nccl", updates)
        if material is None:
            return
        sides = {"alone": "", "joined": joins, "no graphs": " --cuda-graph off" if joins else ""}
        times, rounds = {side: [] for side in sides}, 0
        began, longest = time.monotonic(), 0.0
        # The second round is in reverse order, so a drift of the clock rate affects all sides.
        orders = [list(sides), list(sides)[::-1], list(sides)]
        for order in orders if joins else orders[:1]:
            if rounds and longest > self.left():
                break
            for side in order:
                log = f"nccl-step-{side.replace(' ', '-')}"
                code, text, seconds = self.mapl(log, f"dpo {material[0]} --output-dir {log} --overwrite-output-dir{sides[side]}", **environment)
                if code != 0:
                    return self.row("nccl", f"step {side}", "failed", f"exit code {code}: {text.strip()[-300:]}", seconds)
                # `step_seconds` excludes the time between two steps.
                at = [step["time"] for step in self.steps_of(log)]
                times[side] += [after - before for before, after in zip(at[warmup - 1:], at[warmup:])]
            rounds += 1
            began, longest = time.monotonic(), max(longest, time.monotonic() - began)
        self.same("nccl", "steps joined", "nccl-step-alone", "nccl-step-joined", updates)
        median = {side: statistics.median(seconds) for side, seconds in times.items()}
        self.facts["nccl"] = {"step_seconds": times, "rounds": rounds}
        cost, graphs = (100 * (median[side] / median["alone"] - 1) for side in ["joined", "no graphs"])
        reached = "reached" if cost <= NCCL_GOAL else "not reached"
        detail = (f"{cost:+.2f} % of {1e3 * median['alone']:.1f} ms, goal {NCCL_GOAL:.0f} % {reached}; alone without CUDA graphs {graphs:+.2f} %; "
                  f"{rounds} rounds")
        self.row("nccl", "cost of a step", "ok" if joins else "skipped", detail if joins else "requires a GPU; both sides were alone")

    def quickstart(self):
        if self.options.device != "cuda":
            return self.row("quickstart", "quickstart", "skipped", "takes hours on the emulator")
        scale = min(1.0, self.left() / 400)
        code, text, seconds = self.mapl("quickstart", f"quickstart --device cuda --scale {scale:.2f} --output-dir quick")
        try:
            runs = json.loads((self.work / "quick" / "summary.json").read_text())["runs"]
            shares = {r["name"]: [round(r[k]["correct"] / max(1, r[k]["total"]), 3) for k in ["semantic", "intra", "inter"]]
                      for r in runs}
        except (OSError, ValueError, KeyError, TypeError) as why:
            return self.row("quickstart", "quickstart", "failed", f"exit code {code}: {why}: {text.strip()[-300:]}", seconds)
        self.facts["quickstart"] = {"scale": scale, "shares": shares}
        detail = "; ".join(f"{name} {' '.join(map(str, values))}" for name, values in shares.items())
        self.row("quickstart", f"scale {scale:.2f}", "ok" if code == 0 else "failed", detail, seconds)

    # Timed stages

    def commit(self):
        return self.facts.get("commit", "unknown") + ("+" if self.facts.get("changed") else "")

    def pairs_of(self, stage, updates):
        """Flags of DPO steps of a fixed shape, and those of the shape for a plan; None after a failure."""
        cuda = self.options.device == "cuda"
        model, pairs, prompt, response = ("qwen2.5-0.5b", 16, 512, 256) if cuda else ("tiny", 1, 16, 8)
        sizes = argparse.Namespace(mapl=HERE / "mapl", work=self.work / "steps", model=model, pairs=pairs, prompt=prompt, response=response,
                                   steps=updates, warmup=2, deadline=time.monotonic() + self.left(), patience=60.0)
        sizes.work.mkdir(parents=True, exist_ok=True)
        try:
            folder = steps.prepare(sizes)
        except (RuntimeError, OSError) as why:
            return self.row(stage, "material", "failed", str(why)[-300:])
        run = (f"--model {folder / 'model'} --train-file {folder / 'pairs.jsonl'} --device {self.options.device} --max-steps {updates} "
               f"--per-device-train-batch-size {pairs} --no-shuffle --max-length {prompt + response} --learning-rate 1e-6 "
               "--save-strategy no")
        return run, f"--pairs {pairs} --prompt {prompt} --response {response}"

    def step(self):
        """Time by op of whole steps, next to the prediction of the plan."""
        cuda = self.options.device == "cuda"
        material = self.pairs_of("step", 8 if cuda else 3)
        if material is None:
            return
        run, shape = material
        plan = f"bench --plan --json {shape}"
        for name, flags in {"whole head": "", "head of 2,048 rows": " --head-rows 2048"}.items():
            if not cuda and flags:
                # The emulator runs the Hopper kernels only for bf16 data, at sizes that need minutes there.
                self.row("step", name, "skipped", "requires a GPU")
                continue
            log = "step-" + ("chunks" if flags else "whole")
            code, text, seconds = self.mapl(log, f"study dpo {run} --output-dir {log} --study-dir {log}-study{flags}")
            if code != 0:
                self.row("step", name, "failed", f"exit code {code}: {text.strip()[-300:]}", seconds)
                continue
            record = json.loads((self.work / f"{log}-study" / "study.json").read_text())
            self.facts[log] = record
            (self.out / f"{log}.json").write_text(json.dumps(record, indent=1))
            detail = f"{1e3 * record['summary']['step_seconds']:.1f} ms"
            if cuda:
                code, text, _ = self.mapl(f"{log}-plan", plan + flags)
                detail += f", predicted {1e3 * json.loads(text)['predicted_seconds']:.1f} ms" if code == 0 else ", no prediction"
            self.row("step", name, "ok", detail, seconds)

    def timed(self, stage, flags):
        """Times ops of mapl in the first half of the stage, those of other libraries at the same shapes in the second."""
        device = self.options.device
        # cuBLASLt comes with CUDA or with PyTorch's packages.
        libraries = library_path("libcublasLt.so*")
        half = self.left() / 2
        sizes = {"cuda": f"--tokens 2048,8192 --dtype bf16 --seconds 0.2 --repeats 20 --limit {half:.0f}",
                 "emulator": f"--model tiny --tokens 16 --repeats 1 --seconds 0 --limit {half:.0f}"}[device]
        ours = self.out / f"bench-{stage}.csv"
        words = f"bench --device {device} {flags} {sizes} --commit {self.commit()} --output {ours}".split()
        code, text, seconds = self.call(f"bench-{stage}", [HERE / "mapl", *words], LD_LIBRARY_PATH=libraries)
        said = next((line for line in text.splitlines() if " rows measured, " in line), text.strip()[-300:])
        self.row(stage, "mapl", "ok" if code == 0 else "failed", said, seconds)
        if not ours.exists():
            return
        peers = self.out / f"bench-{stage}-peers.csv"
        words = ["-B", HERE / "ops.py", "--rows", ours, "--output", peers, "--device", "cuda" if device == "cuda" else "cpu",
                 "--seconds", "0.3" if device == "cuda" else "0", "--patience", "30", "--no-compile", "--limit", f"{self.left():.0f}"]
        code, text, seconds = self.call(f"bench-{stage}-peers", [sys.executable, *words])
        measured, others = text.count(": measured "), len(re.findall(r": (?:absent|skipped|failed) ", text))
        missing = "No module named 'torch'" in text
        fine = code == 0 and measured > 0
        detail = f"{measured} rows, {others} with a reason why not" if fine else text.strip()[-300:]
        self.row(stage, "peers", "ok" if fine else "skipped" if missing else "failed", detail, seconds)

    def attention(self):
        self.timed("attention", f"--op attention_fwd,attention_bwd,attention_rope --model {self.options.models or 'qwen2.5-0.5b,llama-3.1-8b'}"
                   if self.options.device == "cuda" else "--op attention_fwd,attention_bwd,attention_rope")

    def models(self):
        self.timed("models", f"--op linear_,head_ --model {self.options.models or 'qwen2.5-1.5b,llama-3.1-8b'}"
                   if self.options.device == "cuda" else "--op linear_fwd,head_logprob")

    def rows_of_ops(self):
        self.timed("rows", f"--op {ROW_WISE} --model {self.options.models or 'qwen2.5-0.5b'}" if self.options.device == "cuda" else "--op norm_,rope_")

    def steps(self):
        cuda = self.options.device == "cuda"
        sizes = "--model qwen2.5-0.5b --pairs 16 --quads 8 --prompt 512 --instruction 64 --response 256" if cuda else (
            "--model tiny --pairs 1 --quads 1 --prompt 16 --instruction 4 --response 8 --steps 2")
        for units, share in {"pairs": 0.55, "quads": 1.0}.items():
            words = ["-B", HERE / "steps.py", "--mapl", HERE / "mapl", "--python", sys.executable, "--work", self.work / "steps",
                     "--device", "cuda" if cuda else "cpu", *sizes.split(), "--units", units, "--rounds", "1", "--no-compile", "--patience", "60",
                     "--limit", f"{max(1.0, share * (self.left() - 10)):.0f}", "--commit", self.commit(), "--output", self.out / f"bench-steps-{units}.csv"]
            code, text, seconds = self.call(f"bench-steps-{units}", [sys.executable, *words])
            sides, others = text.count(f" {units}/s"), len(re.findall(r" (?:absent|skipped|failed): ", text))
            fine = code == 0 and sides > 0
            detail = f"{sides} sides, {others} with a reason why not" if fine else text.strip()[-300:]
            self.row("steps", "MAPL quads" if units == "quads" else units, "ok" if fine else "failed", detail, seconds)
        files = sorted(self.out.glob("bench-*.csv"))
        code, text, seconds = self.call("bench-summary", [sys.executable, "-B", HERE / "summary.py", *files])
        self.row("steps", "summary", "ok" if code == 0 else "failed", f"{text.count('not reached')} goals not reached", seconds)

    def speed(self):
        if self.options.device != "cuda":
            return self.row("speed", "Qwen2.5-0.5B shape", "skipped", "requires a GPU")
        if not self.material():
            return
        config = {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
            "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "initializer_range": 0.02, "tie_word_embeddings": True,
        }
        (self.work / "config.json").write_text(json.dumps(config))
        code, text, seconds = self.mapl("init", "init --config config.json --tokenizer q/tokenizer --output-dir qwen")
        if code != 0:
            return self.row("speed", "init", "failed", text.strip()[-300:], seconds)
        rows = Path(self.options.rows).resolve() if self.options.rows else "q/train-mapl.jsonl"
        for graph in ["on", "off"]:
            run = f"speed-graph-{graph}"
            words = (f"dpo --model qwen --train-file {rows} --objective rows --max-steps 12 --per-device-train-batch-size 16 "
                     f"--device cuda --cuda-graph {graph} --save-strategy no --output-dir {run}")
            code, text, seconds = self.mapl(run, words)
            if code != 0:
                self.row("speed", run, "failed", f"exit code {code}: {text.strip()[-300:]}", seconds)
                continue
            events = [json.loads(line) for line in (self.work / run / "metrics.jsonl").read_text().splitlines()]
            steps = [e for e in events if e["kind"] == "train"]
            tokens = [b["num_tokens"] - a["num_tokens"] for a, b in zip(steps, steps[1:])]
            rates = [n / e["step_seconds"] for n, e in list(zip(tokens, steps[1:]))[3:]]
            memory = next((e for e in events if e.get("event") == "memory"), None)
            self.facts[run] = {"tokens_per_second": rates, "memory": memory}
            detail = f"{statistics.median(rates):.0f} tokens/s"
            fine = True
            if memory:
                share = memory["taken_bytes"] / memory["planned_bytes"]
                fine = 0.95 <= share <= 1.05
                detail += f"; memory {memory['taken_bytes'] >> 20} MiB, {share:.3f} of the plan"
            self.row("speed", run, "ok" if fine else "failed", detail, seconds)

    def write(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.facts["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        self.facts["seconds"] = round(time.monotonic() - self.began, 1)
        (self.out / "suite.json").write_text(json.dumps({"facts": self.facts, "rows": self.rows}, indent=1) + "\n")
        lines = [f"{r['stage']:<11} {r['name']:<34} {r['outcome']:<8} {r['seconds']:6.1f} s  {r['detail']}" for r in self.rows]
        (self.out / "suite.txt").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Runs the GPU suite.")
    parser.add_argument("--device", choices=["cuda", "emulator"], default="cuda")
    parser.add_argument("--out", default="gpu-suite-out", help="folder for the table and logs")
    parser.add_argument("--strict", action="store_true", help="treat a stage that cannot run as a failure")
    parser.add_argument("--seconds", type=float, default=570.0, help="time limit of all stages together")
    parser.add_argument("--rows", help="preference rows for the speed stage")
    parser.add_argument("--models", help="models of the timed stages, in the format of mapl bench --model; all by default")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options = parser.parse_args()
    suite = Suite(options)
    for stage in options.stages:
        if time.monotonic() - suite.began > options.seconds:
            suite.row(stage, stage, "skipped", "no time left")
            continue
        suite.stage_ends = time.monotonic() + LIMITS[stage]
        # Without the device no other stage can run.
        if getattr(suite, {"rows": "rows_of_ops"}.get(stage, stage))() is False and stage == "device":
            break
    suite.write()
    outcomes = [row["outcome"] for row in suite.rows]
    print(f"\n{outcomes.count('ok')} ok, {outcomes.count('failed')} failed, {outcomes.count('skipped')} skipped; "
          f"{suite.out / 'suite.json'}")
    sys.exit(1 if "failed" in outcomes or (options.strict and "skipped" in outcomes) else 0)


if __name__ == "__main__":
    main()
