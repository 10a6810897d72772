"""Samples of a call, as `mapl bench` takes them: sets of operands in turn, samples of many calls, medians and quantiles."""

import time

LEAST = 5


def quantile(ordered, q):
    """Between the two neighbours in a sorted list."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class Timer:
    """Times calls of one device; on cuda between events, on the cpu by the clock."""

    def __init__(self, torch, device, repeats, seconds):
        self.torch, self.cuda = torch, device == "cuda"
        self.repeats, self.seconds = repeats, seconds
        self.sample_seconds = 2e-3 if self.cuda else 10e-3

    def sample(self, call, sets, calls, start):
        """Mean seconds of a call over `calls` calls, the first on set `start`."""
        if not self.cuda:
            began = time.perf_counter()
            for i in range(calls):
                call(sets[(start + i) % len(sets)])
            return (time.perf_counter() - began) / calls
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for i in range(calls):
            call(sets[(start + i) % len(sets)])
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e-3 / calls

    def times(self, calls_by_name, sets):
        """Timings by name, the contenders in turn."""
        lanes = {}
        for name, call in calls_by_name.items():
            for i in range(3):
                call(sets[i % len(sets)])
            one = self.sample(call, sets, 1, 0)
            lanes[name] = {"calls": max(1, min(100_000, round(self.sample_seconds / max(one, 1e-9)))), "samples": [], "next": 0}
        began, names = time.perf_counter(), list(lanes)
        for turn in range(self.repeats):
            if turn >= LEAST and time.perf_counter() - began > self.seconds:
                break
            for at in range(len(names)):
                name = names[(turn + at) % len(names)]
                lane = lanes[name]
                lane["samples"].append(self.sample(calls_by_name[name], sets, lane["calls"], lane["next"]))
                lane["next"] += lane["calls"]
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
            }
        return result
