"""Samples of a call, as `mapl bench` takes them, the rows they become, and the watched process that takes them.

Samples: sets of operands in turn, samples of many calls, medians and quantiles. A library under test may hang, end the process
or leave the device unusable, so everything that calls one runs in a process of its own (`Channel`), and the process that writes
the rows only waits for it (`Watched`).
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

LEAST = 5
WARM_UP = 3
# Calls shorter than this are recorded on cuda: the time to launch them from Python is not theirs. Longer ones hide it.
RECORDED_SECONDS = 300e-6
# Contenders by the first word of their name: the package they come from. All others are torch's.
PACKAGES = {
    "trl": "trl",
    "liger": "liger-kernel",
    "cut-cross-entropy": "cut-cross-entropy",
    "quack": "quack-kernels",
    "flash-attn": "flash-attn",
}


class Absent(Exception):
    """A package that is missing or does not load."""


class TooLong(Exception):
    """A contender whose least number of samples would take too long."""


class NotRecorded(Exception):
    """A recording that failed, after which the process cannot be relied on."""


class Context:
    """Torch, the device and the storage of activations."""

    def __init__(self, torch, device, dtype, no_compile=False):
        self.torch, self.device, self.no_compile = torch, device, no_compile
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.unit = {"f32": 2.0**-23, "bf16": 2.0**-8}[dtype]
        # Fused heads and flash attention know no other storage, and no cpu.
        self.low = device == "cuda" and dtype == "bf16"

    def normal(self, *shape, scale=1.0, dtype=None):
        return (self.torch.randn(*shape, device=self.device) * scale).to(dtype or self.dtype)

    def compile(self, function):
        """The function compiled, by its first call, for the shapes it is called with."""
        made = []

        def call(a):
            if not made:
                made.append(self.torch.compile(function, dynamic=False))
            return made[0](a)

        return call

    def close(self, got, expected, unit=None):
        """Largest error over what is allowed: sums in f32, results rounded once."""
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
    """Between the two neighbours in a sorted list."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class Timer:
    """Times calls of one device; on cuda between events, on the cpu by the clock."""

    def __init__(self, torch, device, repeats, seconds, longest):
        self.torch, self.cuda = torch, device == "cuda"
        self.repeats, self.seconds, self.longest = repeats, seconds, longest
        self.sample_seconds = 2e-3 if self.cuda else 10e-3

    def sample(self, call, sets, lane):
        """Mean seconds of a call over one sample of a lane."""
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
        """A lane: how a contender is called, and how often in a sample."""
        lane = {"calls": 1, "graph": None, "next": 0, "samples": []}
        for _ in range(WARM_UP):
            began = time.perf_counter()
            one = self.sample(call, sets, lane)
            # By the clock, so that waiting on the host counts.
            if max(one, time.perf_counter() - began) * LEAST > self.longest:
                raise TooLong(f"a call takes {one:.2f} s")
        one = self.sample(call, sets, lane)
        if self.cuda and record and one < RECORDED_SECONDS:
            lane |= {"graph": self.recorded(call, sets), "calls": len(sets)}
            one = min(self.sample(call, sets, lane) for _ in range(2))
        unit = lane["calls"]
        wanted = max(1, min(100_000, round(self.sample_seconds / max(one, 1e-9))))
        lane["calls"] = -(-wanted // unit) * unit
        return lane

    def recorded(self, call, sets):
        """One call on every set, as a graph. Every set has been called before, on the stream that is recorded."""
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
            raise NotRecorded(f"{type(why).__name__}: {why}") from None
        return graph

    def times(self, calls_by_name, sets, recordable=(), said=lambda name: None):
        """Timings by name, the contenders in turn, and what those that failed raised."""
        lanes, failed = {}, {}
        for name, call in calls_by_name.items():
            said(name)
            try:
                lanes[name] = self.warm(call, sets, name in recordable)
            except NotRecorded:
                raise
            except Exception as why:  # noqa: BLE001  (whatever fails is a row)
                failed[name] = why.with_traceback(None)
        began = time.perf_counter()
        for turn in range(self.repeats):
            if turn >= LEAST and time.perf_counter() - began > self.seconds:
                break
            names = list(lanes)
            for at in range(len(names)):
                name = names[(turn + at) % len(names)]
                said(name)
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
                "note": "recorded" if lane["graph"] else "",
            }
        return result, failed


def variant(torch, name):
    """A contender's name in the rows: its library with the version, and which of the library's ways it is."""
    first, _, rest = name.partition(" ")
    if first not in PACKAGES:
        return f"torch {torch.__version__.split('+')[0]} {name}"
    try:
        return " ".join([first, importlib.metadata.version(PACKAGES[first]), rest]).strip()
    except importlib.metadata.PackageNotFoundError:
        return name


def blank(row, variant, status, note=""):
    """A row of the same call without figures."""
    empty = "samples calls median_us p20_us p80_us least_us paced_median paced_p20 paced_p80 gb_per_s tflop_per_s share predicted_us energy_mj others error_share".split()
    cache = row["cache"] if status == "measured" else ""
    day = datetime.date.today().isoformat()
    return row | dict.fromkeys(empty, "") | {"date": day, "variant": variant, "status": status, "note": note, "cache": cache}


def unfit(row, variant, why):
    """The row of a contender that raised."""
    status = "absent" if isinstance(why, Absent) else "skipped" if isinstance(why, TooLong) else "failed"
    text = str(why) if status != "failed" else f"{type(why).__name__}: {why}"
    return blank(row, variant, status, " ".join(text.split())[:300])


def settle(torch, device):
    """After a failure: memory is given back, and a device that no longer answers raises."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def allocated(torch, device, peak=False):
    """Bytes of tensors, or the most there were since this was last asked without `peak`; 0 on the cpu, where nobody counts."""
    if device != "cuda":
        return 0
    if peak:
        return torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def measure(args, torch, made, task, said):
    """Rows of one row's call, and the seconds that torch.compile took. `made` is what ops.py has for the op."""
    (operands, calls, check), row = made, task["row"]
    result, good, errors, beyond, compiling, recordable = [], {}, {}, {}, 0.0, []
    said("operands")
    fresh = operands()
    for name, call in calls.items():
        label = variant(torch, name)
        if label in task["without"] or (name == "compile" and args.no_compile):
            continue
        if name == "compile" and task["compiling"] <= 0:
            result.append(blank(row, label, "skipped", "no time left for torch.compile"))
            continue
        said(label)
        began = time.perf_counter()
        try:
            # A copy, so that what a contender keeps with its operands goes with it.
            own = dict(fresh)
            held = allocated(torch, args.device)
            got = call(own)
            beyond[label] = allocated(torch, args.device, peak=True) - held
            # What a right result is depends on the contender where some make other gradients, or see another reference.
            error = check(own, got, name) if row["op"] in ("head_logprob_bwd", "head_preference") else check(own, got)
            if not error <= 1.0:
                raise ValueError(f"its result is wrong: {error:.2f} times what is allowed")
            good[label], errors[label] = call, error
        except Exception as why:  # noqa: BLE001  (whatever fails is a row)
            result.append(unfit(row, label, why))
        own = got = None
        if label not in good:
            settle(torch, args.device)
        if name == "compile":
            compiling += time.perf_counter() - began
        # torch's optimisers count their updates on the host.
        if label in good and label not in task["launched"] and row["op"] != "adamw" and not args.no_graph:
            recordable.append(label)
    said("operands")
    # A call that reads a part of an operand still needs room for all of it.
    held = sum(value.numel() * value.element_size() for value in fresh.values() if isinstance(value, torch.Tensor))
    count = max(1, min(64, math.ceil(args.rotate_mib * 2**20 / max(int(row["bytes"]), held, 1))))
    sets = [fresh, *(operands() for _ in range(count - 1))]
    timer = Timer(torch, args.device, args.repeats, args.seconds, args.longest)
    times, failed = timer.times(good, sets, recordable, said) if good else ({}, {})
    for label, why in failed.items():
        result.append(unfit(row, label, why))
        settle(torch, args.device)
    for label, t in times.items():
        seconds = 1e-6 * t["median_us"]
        new = blank(row, label, "measured") | {"error_share": errors[label], **t}
        if args.device == "cuda":
            new["note"] = ", ".join(filter(None, [t["note"], f"{beyond[label] >> 20} MiB beyond operands"]))
        new["gb_per_s"] = 1e-9 * int(row["bytes"]) / seconds
        new["tflop_per_s"] = 1e-12 * int(row["flops"]) / seconds
        if row["memory_gb_per_s"] and row["share"]:
            # The same floor over another time.
            new["share"] = float(row["share"]) * float(row["median_us"]) / t["median_us"]
        result.append(new)
    if compiling:
        # What was compiled for these shapes is of no use to others, and only so many are kept.
        torch._dynamo.reset()
    return result, compiling


class Channel:
    """The measuring side: tasks come on standard input, answers leave on what was standard output, one JSON object a line.

    Whatever else prints to standard output goes to standard error. The process ends when nobody listens any more.
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
    """A measuring process that is no more: the contender it was at, and whether it was silent for too long, there was no time
    left, or a recording failed."""

    def __init__(self, doing, why, silent=False, late=False, recording=False):
        super().__init__(why)
        self.doing, self.silent, self.late, self.recording = doing, silent, late, recording


class Watched:
    """The waiting side: one measuring process, started when there is a task and none runs."""

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
        """The answer to a task. Raises `Lost` where the process ended, was silent for too long or passed the deadline."""
        doing = "start"
        try:
            if self.process is None:
                self.start()
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # It has ended; the answers say so.
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
                raise Lost(doing, f"its process ended with code {code}: {last}"[:300])
            answer = json.loads(line)
            if "doing" in answer:
                doing = answer["doing"]
            elif "broken" in answer:
                self.stop()
                raise Lost(doing, answer["broken"][:300], recording=answer.get("recording", False))
            else:
                return answer

    def stop(self):
        """Ends the process and those that it started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None


def ask(peer, row, state, deadline):
    """Rows of one row's call; a contender that ends the process is left out, and the others are measured again. `state` lives as
    long as the run: the seconds left for torch.compile and, by op, what crashed how often and what cannot be recorded."""
    crashes, launched = (state[what].setdefault(row["op"], {}) for what in ("crashes", "launched"))
    # A crash may be the shape's fault, once.
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
            # To wait a second time is too dear.
            crashes[what] = crashes.get(what, 0) + (2 if why.silent else 1)
            if why.silent and what.endswith(" compile"):
                state["compiling"] = 0.0
