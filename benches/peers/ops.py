"""Times the ops of a file of `mapl bench` rows with PyTorch and libraries on top of it, and writes rows with the same columns.

Shapes, bytes, FLOPs and ceilings are taken from the rows, so both sides measure the same calls. Every contender's result is
compared with a float64 computation before it is timed. A wrong result is a failed row, and a package that cannot be imported
is an absent row. Contenders run in a separate process. If one hangs, crashes or breaks the device, the process is restarted:
only this contender loses its row.
"""

import argparse
import csv
import math
import os
import sys
import time

import attention  # noqa: F401  (registers its contenders)
import heads  # noqa: F401  (likewise)
from contenders import OPS, op, rows_of
from timing import Channel, Context, CaptureFailed, Watched, ask, blank, measure


@op("linear_fwd")
def linear_fwd(c, s, layer):
    f = c.torch.nn.functional
    t, i, o = s["tokens"], s["inputs"], s["outputs"]
    bias, residual = layer in ("qkv", "up"), layer in ("o", "down")

    def operands():
        return {
            "x": c.normal(t, i),
            "w": c.normal(o, i, scale=i**-0.5),
            "b": c.normal(o) if bias else None,
            "r": c.normal(t, o) if residual else None,
        }

    def eager(a):
        y = f.linear(a["x"], a["w"], a["b"])
        return y + a["r"] if residual else y

    def check(a, y):
        rows = rows_of(c.torch, t).to(c.device)
        e = a["x"][rows].double() @ a["w"].double().T
        e = e + a["b"].double() if bias else e
        return c.close(y[rows], e + a["r"][rows].double() if residual else e)

    calls = {"eager": eager, "compile": c.compile(eager)}
    if residual:
        calls["addmm"] = lambda a: c.torch.addmm(a["r"], a["x"], a["w"].T)
    return operands, calls, check


@op("linear_bwd_input")
def linear_bwd_input(c, s, _):
    t, i, o = s["tokens"], s["inputs"], s["outputs"]

    def check(a, y):
        rows = rows_of(c.torch, t).to(c.device)
        return c.close(y[rows], a["dy"][rows].double() @ a["w"].double())

    return (
        lambda: {"dy": c.normal(t, o), "w": c.normal(o, i, scale=o**-0.5)},
        {"eager": lambda a: a["dy"] @ a["w"]},
        check,
    )


@op("linear_bwd_weight")
def linear_bwd_weight(c, s, _):
    """`mapl` writes this gradient in f32. With bf16 operands torch does so only on request (`f32 result`)."""
    t, i, o = s["tokens"], s["inputs"], s["outputs"]

    def check(a, y):
        rows = rows_of(c.torch, o).to(c.device)
        return c.close(y[rows], a["dy"][:, rows].double().T @ a["x"].double())

    calls = {"eager": lambda a: a["dy"].T @ a["x"]}
    if c.low:
        calls["f32 result"] = lambda a: c.torch.mm(a["dy"].T, a["x"], out_dtype=c.torch.float32)
    return lambda: {"dy": c.normal(t, o), "x": c.normal(t, i)}, calls, check


@op("linear_glu_fwd")
def linear_glu_fwd(c, s, _):
    f = c.torch.nn.functional
    t, h, n = s["tokens"], s["hidden"], s["intermediate"]

    def eager(a):
        gate, up = f.linear(a["x"], a["w"]).chunk(2, dim=-1)
        return f.silu(gate) * up

    def check(a, y):
        rows = rows_of(c.torch, t).to(c.device)
        gate, up = (a["x"][rows].double() @ a["w"].double().T).chunk(2, dim=-1)
        return c.close(y[rows], f.silu(gate) * up)

    return lambda: {"x": c.normal(t, h), "w": c.normal(2 * n, h, scale=h**-0.5)}, {"eager": eager, "compile": c.compile(eager)}, check


@op("glu_fwd")
def glu_fwd(c, s, _):
    f = c.torch.nn.functional
    t, n = s["tokens"], s["intermediate"]

    def eager(a):
        gate, up = a["g"].chunk(2, dim=-1)
        return f.silu(gate) * up

    def check(a, y):
        gate, up = a["g"].double().chunk(2, dim=-1)
        return c.close(y, f.silu(gate) * up)

    return lambda: {"g": c.normal(t, 2 * n)}, {"eager": eager, "compile": c.compile(eager)}, check


@op("norm_fwd")
def norm_fwd(c, s, _):
    f = c.torch.nn.functional
    t, h = s["tokens"], s["hidden"]

    def eager(a):
        total = a["x"] + a["r"]
        return total, f.rms_norm(total, (h,), a["w"], 1e-6)

    def check(a, y):
        return c.close(y[1], f.rms_norm(y[0].double(), (h,), a["w"].double(), 1e-6))

    return lambda: {"x": c.normal(t, h), "r": c.normal(t, h), "w": c.normal(h)}, {"eager": eager, "compile": c.compile(eager)}, check


@op("embedding_fwd")
def embedding_fwd(c, s, _):
    f = c.torch.nn.functional
    t, h, v = s["tokens"], s["hidden"], s["vocab"]

    def operands():
        return {"i": c.torch.randint(0, v, (t,), device=c.device), "w": c.normal(v, h)}

    return operands, {"eager": lambda a: f.embedding(a["i"], a["w"])}, lambda a, y: c.close(y, a["w"][a["i"]])


@op("adamw")
def adamw(c, s, _):
    """Weights and state in f32, as in `mapl`. With bf16 activations, the updated weights are also copied to bf16."""
    n, rate = s["len"], 1e-3

    def operands():
        weight = c.torch.nn.Parameter(c.normal(n, scale=0.02, dtype=c.torch.float32))
        weight.grad = c.normal(n, scale=0.01, dtype=c.torch.float32)
        optimiser = c.torch.optim.AdamW([weight], lr=rate, weight_decay=0.01, fused=True)
        low = None if c.dtype == c.torch.float32 else c.normal(n)
        return {"p": weight, "o": optimiser, "low": low, "start": weight.detach()[:4096].double().clone(), "updates": [0]}

    def run(a):
        a["updates"][0] += 1
        a["o"].step()
        if a["low"] is not None:
            a["low"].copy_(a["p"].detach())
        return a["p"].detach()

    def check(a, p):
        # The first update moves every element by the learning rate against the sign of its gradient, and decays it.
        g = a["p"].grad[:4096].double()
        moved = -rate * 0.01 * a["start"] - rate * g / (g.abs() + 1e-8)
        return c.close(p[:4096].double() - a["start"], moved, 2.0**-23) if a["updates"] == [1] else math.inf

    return operands, {"fused": run}, check


@op("grad_norm")
def grad_norm(c, s, _):
    return (
        lambda: {"g": c.normal(s["len"], scale=0.01, dtype=c.torch.float32)},
        {"eager": lambda a: c.torch.nn.utils.get_total_norm([a["g"]])},
        lambda a, y: c.close(y[None], a["g"].double().norm()[None], 2.0**-23),
    )


def work(args):
    """The measuring process."""
    channel = Channel()
    import torch

    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    if args.device == "cuda":
        # Graph capture needs a stream other than the default one.
        torch.cuda.set_stream(torch.cuda.Stream())

    def announce(what):
        channel.say(doing=what)

    for task in channel.tasks():
        try:
            row, context = task["row"], Context(torch, args.device, task["row"]["dtype"], args.no_compile)
            sizes = {k: int(v) for k, v in (part.split("=") for part in row["shape"].split())}
            made = OPS[row["op"]](context, sizes, row["layer"])
            rows, compiling = measure(args, torch, made, task, announce) if made else ([], 0.0)
        except CaptureFailed as why:
            channel.say(broken=str(why), recording=True)
            return
        except Exception as why:  # noqa: BLE001  (the complete call failed, or the device no longer responds)
            channel.say(broken=f"{type(why).__name__}: {why}")
            return
        if args.device == "cuda":
            torch.cuda.empty_cache()
        channel.say(rows=rows, compiling=compiling)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="CSV file of mapl bench rows")
    parser.add_argument("--output", required=True, help="CSV file to write the rows to")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of sampling per call, over all contenders")
    parser.add_argument("--longest", type=float, default=10.0, help="skip contenders whose minimum samples would exceed this many seconds")
    parser.add_argument("--patience", type=float, default=45.0, help="seconds without progress after which a contender is killed")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which the remaining calls are skipped")
    parser.add_argument("--rotate-mib", type=int, default=256)
    parser.add_argument("--compile-seconds", type=float, default=60.0, help="total seconds for torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-graph", action="store_true", help="do not capture CUDA graphs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    if args.worker:
        return work(args)
    deadline = time.monotonic() + args.limit
    with open(args.rows, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] == "mapl" and row["status"] == "measured"]
    peer = Watched([sys.executable, "-B", __file__, *sys.argv[1:], "--worker"], args.patience)
    state = {"compiling": args.compile_seconds, "crashes": {}, "launched": {}}
    with open(args.output, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["schema"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            if row["op"] not in OPS:
                continue
            out = time.monotonic() >= deadline
            for new in [blank(row, "torch", "skipped", "no time left")] if out else ask(peer, row, state, deadline):
                result = f"{float(new['median_us']):.2f} us" if new["status"] == "measured" else new["note"]
                print(f"{new['op']:<18} {new['variant']:<28} {new['shape']}: {new['status']} {result}", flush=True)
                if "No module named 'torch'" in new["note"]:
                    raise SystemExit(new["note"])
                writer.writerow(new)
            file.flush()
    peer.stop()
    return None


if __name__ == "__main__":
    main()
