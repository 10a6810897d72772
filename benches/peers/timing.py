"""Sampling as in `mapl bench`, the rows built from the samples, and the supervised process that takes them.

Calls rotate over operand sets; a sample holds many calls; rows hold medians and quantiles. A library under test may hang, crash
or leave the device unusable. Everything that calls a library therefore runs in a separate process (`Channel`), and the process
that writes the rows only supervises it (`Watched`).
"""

import collections
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time

MIN_SAMPLES = 5
WARM_UP = 3
# On cuda, calls shorter than this are captured as a graph to exclude Python's launch time. Longer calls hide it.
CAPTURE_BELOW_SECONDS = 300e-6
# Package of a contender by the first word of its name. All other contenders are torch's.
PACKAGES = {
    "trl": "trl",
    "liger": "liger-kernel",
    "cut-cross-entropy": "cut-cross-entropy",
    "quack": "quack-kernels",
    "flash-attn": "flash-attn",
    "flash-attn-3": "flash_attn_3",
    "flash-attn-4": "flash-attn-4",
    "magi-attention": "magi_attention",
}


class Absent(Exception):
    """A package is missing or fails to load."""


class TooLong(Exception):
    """The minimum number of samples of a contender would take too long."""


class CaptureFailed(Exception):
    """Graph capture failed, after which the process is in an unknown state."""


class Context:
    """Torch, the device and the storage of activations."""

    def __init__(self, torch, device, dtype, no_compile=False):
        self.torch, self.device, self.no_compile = torch, device, no_compile
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.unit = {"f32": 2.0**-23, "bf16": 2.0**-8}[dtype]
        # Fused heads and flash attention support only bf16 on cuda.
        self.low = device == "cuda" and dtype == "bf16"

    def normal(self, *shape, scale=1.0, dtype=None):
        return (self.torch.randn(*shape, device=self.device) * scale).to(dtype or self.dtype)

    def compile(self, function):
        """The function compiled by torch.compile. Its first call compiles it for the shapes of that call."""
        made = []

        def call(a):
            if not made:
                made.append(self.torch.compile(function, dynamic=False))
            return made[0](a)

        return call

    def close(self, got, expected, unit=None):
        """Largest error over its tolerance, which allows for f32 accumulation and one rounding of the result."""
        got, expected = got.detach().double(), expected.detach().double()
        scale = expected.pow(2).mean().sqrt().clamp(min=1e-30)
        allowed = 8 * (unit or self.unit) * (expected.abs() + scale) + 1e-4 * scale
        return float(((got - expected).abs() / allowed).max())

    def without_grad(self, calls):
        def plain(call):
            def run(a):
                with self.torch.no_grad():
                    return call(a)

            return run

        return {name: plain(call) for name, call in calls.items()}


def quantile(ordered, q):
    """Quantile by linear interpolation in a sorted list."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class Timer:
    """Times calls on one device: on cuda between events, on the cpu by the clock."""

    def __init__(self, torch, device, repeats, seconds, longest):
        self.torch, self.cuda = torch, device == "cuda"
        self.repeats, self.seconds, self.longest = repeats, seconds, longest
        self.sample_seconds = 2e-3 if self.cuda else 10e-3

    def sample(self, call, sets, lane):
        """Takes one sample of a lane: mean seconds per call."""
        if not self.cuda:
            began = time.perf_counter()
            self.run(call, sets, lane)
            return (time.perf_counter() - began) / lane["calls"]
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        self.run(call, sets, lane)
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e-3 / lane["calls"]

    def run(self, call, sets, lane):
        if lane["graph"]:
            for _ in range(lane["calls"] // len(sets)):
                lane["graph"].replay()
            return
        for i in range(lane["calls"]):
            call(sets[(lane["next"] + i) % len(sets)])
        lane["next"] += lane["calls"]

    def warm(self, call, sets, record):
        """Warms a contender up and returns its lane: how it is called, and how often per sample."""
        lane = {"calls": 1, "graph": None, "next": 0, "samples": []}
        for _ in range(WARM_UP):
            began = time.perf_counter()
            one = self.sample(call, sets, lane)
            # Wall-clock time includes waiting on the host.
            if max(one, time.perf_counter() - began) * MIN_SAMPLES > self.longest:
                raise TooLong(f"a call takes {one:.2f} s")
        one = self.sample(call, sets, lane)
        if self.cuda and record and one < CAPTURE_BELOW_SECONDS:
            lane |= {"graph": self.captured_graph(call, sets), "calls": len(sets)}
            one = min(self.sample(call, sets, lane) for _ in range(2))
        unit = lane["calls"]
        wanted = max(1, min(100_000, round(self.sample_seconds / max(one, 1e-9))))
        lane["calls"] = -(-wanted // unit) * unit
        return lane

    def captured_graph(self, call, sets):
        """Captures one call on every set as a graph, after a warm-up call on every set on the same stream."""
        for each in sets:
            call(each)
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        try:
            graph.capture_begin()
            try:
                for each in sets:
                    call(each)
            finally:
                graph.capture_end()
        except Exception as why:
            raise CaptureFailed(f"{type(why).__name__}: {why}") from None
        return graph

    def times(self, calls_by_name, sets, capturable=(), announce=lambda name: None):
        """Times contenders, one sample of each per round. Returns timings by name, and the exceptions of contenders that failed."""
        lanes, failed = {}, {}
        for name, call in calls_by_name.items():
            announce(name)
            try:
                lanes[name] = self.warm(call, sets, name in capturable)
            except CaptureFailed:
                raise
            except Exception as why:  # noqa: BLE001  (every failure becomes a row)
                failed[name] = why.with_traceback(None)
        began = time.perf_counter()
        for turn in range(self.repeats):
            if turn >= MIN_SAMPLES and time.perf_counter() - began > self.seconds:
                break
            names = list(lanes)
            for at in range(len(names)):
                name = names[(turn + at) % len(names)]
                announce(name)
                try:
                    lanes[name]["samples"].append(self.sample(calls_by_name[name], sets, lanes[name]))
                except Exception as why:  # noqa: BLE001
                    failed[name] = why.with_traceback(None)
                    del lanes[name]
        result = {}
        for name, lane in lanes.items():
            ordered = sorted(lane["samples"])
            result[name] = {
                "samples": len(ordered),
                "calls": lane["calls"],
                "median_us": 1e6 * quantile(ordered, 0.5),
                "p20_us": 1e6 * quantile(ordered, 0.2),
                "p80_us": 1e6 * quantile(ordered, 0.8),
                "least_us": 1e6 * ordered[0],
                "note": "captured" if lane["graph"] else "",
            }
        return result, failed


def variant(torch, name):
    """Name of a contender in the rows: library, version, and variant of the library."""
    first, _, rest = name.partition(" ")
    if first not in PACKAGES:
        return f"torch {torch.__version__.split('+')[0]} {name}"
    try:
        return " ".join([first, importlib.metadata.version(PACKAGES[first]), rest]).strip()
    except importlib.metadata.PackageNotFoundError:
        return name


def blank(row, variant, status, note=""):
    """A row of the same call without measurements."""
    empty = "samples calls median_us p20_us p80_us least_us paced_median paced_p20 paced_p80 gb_per_s tflop_per_s share predicted_us energy_mj others error_share".split()
    cache = row["cache"] if status == "measured" else ""
    day = datetime.date.today().isoformat()
    return row | dict.fromkeys(empty, "") | {"date": day, "variant": variant, "status": status, "note": note, "cache": cache}


def failure_row(row, variant, why):
    """Row of a contender that raised an exception."""
    status = "absent" if isinstance(why, Absent) else "skipped" if isinstance(why, TooLong) else "failed"
    text = str(why) if status != "failed" else f"{type(why).__name__}: {why}"
    return blank(row, variant, status, " ".join(text.split())[:300])


def recover(torch, device):
    """Frees memory after a failure. Raises if the device no longer responds."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def allocated(torch, device, peak=False):
    """Bytes of allocated tensors, or with `peak` the maximum since the last call without it; 0 on the cpu, which has no counter."""
    if device != "cuda":
        return 0
    if peak:
        return torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def measure(args, torch, made, task, announce):
    """Measures the call of one row. Returns new rows and the seconds of torch.compile. `made` is the op's registered contenders."""
    (operands, calls, check), row = made, task["row"]
    result, good, errors, beyond, compiling, capturable = [], {}, {}, {}, 0.0, []
    announce("operands")
    fresh = operands()
    for name, call in calls.items():
        label = variant(torch, name)
        if label in task["without"] or (name == "compile" and args.no_compile):
            continue
        if name == "compile" and task["compiling"] <= 0:
            result.append(blank(row, label, "skipped", "the time for torch.compile is used up"))
            continue
        announce(label)
        began = time.perf_counter()
        try:
            # The contender receives a copy of the operand dict, so that tensors that it adds are freed with the copy.
            own = dict(fresh)
            held = allocated(torch, args.device)
            got = call(own)
            beyond[label] = allocated(torch, args.device, peak=True) - held
            # The expected result of two ops depends on the contender: some compute different gradients or use a
            # different reference.
            error = check(own, got, name) if row["op"] in ("head_logprob_bwd", "head_preference") else check(own, got)
            if not error <= 1.0:
                raise ValueError(f"the result is wrong: {error:.2f} times the tolerance")
            good[label], errors[label] = call, error
        except Exception as why:  # noqa: BLE001  (every failure becomes a row)
            result.append(failure_row(row, label, why))
        own = got = None
        if label not in good:
            recover(torch, args.device)
        if name == "compile":
            compiling += time.perf_counter() - began
        # torch's optimisers count updates on the host, which a captured graph would not repeat.
        if label in good and label not in task["launched"] and row["op"] != "adamw" and not args.no_graph:
            capturable.append(label)
    announce("operands")
    # A call may read only a part of an operand, but the set needs memory for all of it.
    held = sum(value.numel() * value.element_size() for value in fresh.values() if isinstance(value, torch.Tensor))
    count = max(1, min(64, math.ceil(args.rotate_mib * 2**20 / max(int(row["bytes"]), held, 1))))
    sets = [fresh, *(operands() for _ in range(count - 1))]
    timer = Timer(torch, args.device, args.repeats, args.seconds, args.longest)
    times, failed = timer.times(good, sets, capturable, announce) if good else ({}, {})
    for label, why in failed.items():
        result.append(failure_row(row, label, why))
        recover(torch, args.device)
    for label, t in times.items():
        seconds = 1e-6 * t["median_us"]
        new = blank(row, label, "measured") | {"error_share": errors[label], **t}
        if args.device == "cuda":
            new["note"] = ", ".join(filter(None, [t["note"], f"{beyond[label] >> 20} MiB beyond operands"]))
        new["gb_per_s"] = 1e-9 * int(row["bytes"]) / seconds
        new["tflop_per_s"] = 1e-12 * int(row["flops"]) / seconds
        if row["memory_gb_per_s"] and row["share"]:
            # The share is the lower bound of the time over the measured time. Both contenders have the same bound.
            new["share"] = float(row["share"]) * float(row["median_us"]) / t["median_us"]
        result.append(new)
    if compiling:
        # Code compiled for these shapes is useless for others, and torch caches only a limited number of versions.
        torch._dynamo.reset()
    return result, compiling


class Channel:
    """Measuring side: reads tasks from standard input and writes answers to the original standard output, one JSON object per line.

    Other output to standard output is redirected to standard error. The process ends when its input is closed.
    """

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.queue = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in sys.stdin:
            self.queue.put(json.loads(line))
        os._exit(0)

    def say(self, **what):
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()

    def tasks(self):
        while True:
            yield self.queue.get()


class Lost(Exception):
    """The measuring process has ended. Holds the contender it was measuring and the reason: it was silent for too long, the time of
    the run is over, graph capture failed, or (none of these) it crashed."""

    def __init__(self, doing, why, silent=False, late=False, recording=False):
        super().__init__(why)
        self.doing, self.silent, self.late, self.recording = doing, silent, late, recording


class Watched:
    """Supervising side: one measuring process, started for a task if none is running."""

    def __init__(self, command, patience):
        self.command, self.patience = command, patience
        self.process = None

    def start(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        self.answers, self.errors = queue.Queue(), collections.deque(maxlen=50)
        ends = [(self.process.stdout, self.answers.put, [None]), (self.process.stderr, self.errors.append, [])]
        self.readers = [threading.Thread(target=self.read, args=end, daemon=True) for end in ends]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def read(stream, keep, last):
        for line in itertools.chain(stream, last):
            keep(line)

    def ask(self, task, deadline):
        """Returns the answer to a task. Raises `Lost` if the process ended, was silent for too long or passed the deadline."""
        doing = "start"
        try:
            if self.process is None:
                self.start()
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # The process has ended; reading its answers reports that.
        while True:
            left = deadline - time.monotonic()
            try:
                line = self.answers.get(timeout=max(0.0, min(self.patience, left)))
            except queue.Empty:
                self.stop()
                late = left <= self.patience
                text = "no time left" if late else f"took longer than {self.patience:g} s"
                raise Lost(doing, text, silent=not late, late=late) from None
            if line is None:
                code = self.process.wait()
                self.readers[1].join(timeout=5)
                last = next((text.strip() for text in reversed(self.errors) if text.strip()), "")
                self.stop()
                raise Lost(doing, f"the process ended with code {code}: {last}"[:300])
            answer = json.loads(line)
            if "doing" in answer:
                doing = answer["doing"]
            elif "broken" in answer:
                self.stop()
                raise Lost(doing, answer["broken"][:300], recording=answer.get("recording", False))
            else:
                return answer

    def stop(self):
        """Kills the process and its children."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None


def ask(peer, row, state, deadline):
    """Measures the call of one row. If a contender ends the process, it is left out and the others are measured again. `state` is
    kept for the whole run: the seconds left for torch.compile and, by op, the number of crashes and the contenders that cannot
    be captured."""
    crashes, launched = (state[what].setdefault(row["op"], {}) for what in ("crashes", "launched"))
    # One crash may be due to the shape, so a contender is left out only after two.
    lost, without = [], {what for what, often in crashes.items() if often > 1}
    while True:
        task = {"row": row, "without": sorted(without), "launched": sorted(launched), "compiling": state["compiling"]}
        try:
            answer = peer.ask(task, deadline)
            state["compiling"] -= answer["compiling"]
            return lost + answer["rows"]
        except Lost as why:
            what, note = why.doing, " ".join(str(why).split())
            if why.recording and what not in launched:
                launched[what] = True
                continue
            if why.late or what in ("start", "operands"):
                label = "torch" if what in ("start", "operands") else what
                return lost + [blank(row, label, "skipped" if why.late else "failed", note)]
            lost.append(blank(row, what, "failed", note))
            without.add(what)
            # A hang counts twice: waiting for a second one takes too long.
            crashes[what] = crashes.get(what, 0) + (2 if why.silent else 1)
            if why.silent and what.endswith(" compile"):
                state["compiling"] = 0.0
