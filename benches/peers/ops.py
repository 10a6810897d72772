"""Times the ops of a file of `mapl bench` rows with PyTorch and what builds on it, and writes rows of the same columns.

Shapes, bytes, FLOPs and ceilings come from the rows, so both sides speak of the same calls. Every contender's result is
compared with a float64 computation before it is timed; one that is wrong is a failed row. A package that cannot be imported
is an absent row.
"""

import argparse
import csv
import datetime
import importlib
import math
import os

from timing import Timer

OPS = {}


def op(*names):
    """Registers the contenders of ops: a function of (context, sizes) to (operands, {name: call}, check)."""

    def register(function):
        OPS.update({name: function for name in names})
        return function

    return register


class Context:
    """Torch, the device and the storage of activations."""

    def __init__(self, torch, device, dtype):
        self.torch, self.device = torch, device
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.compiled = {}

    def normal(self, *shape, scale=1.0, dtype=None):
        return (self.torch.randn(*shape, device=self.device) * scale).to(dtype or self.dtype)

    def compile(self, function):
        """The function compiled for the shapes it is called with."""
        if function not in self.compiled:
            self.compiled[function] = self.torch.compile(function, dynamic=False)
        return self.compiled[function]

    def close(self, got, expected):
        """Largest error over what is allowed: sums in f32, results rounded once."""
        got, expected = got.detach().double(), expected.detach().double()
        unit = 2.0**-8 if self.dtype == self.torch.bfloat16 else 2.0**-23
        scale = expected.pow(2).mean().sqrt().clamp(min=1e-30)
        return float(((got - expected).abs() / (8 * unit * (expected.abs() + scale) + 1e-4 * scale)).max())


def rows_of(torch, n, count=16):
    return torch.linspace(0, n - 1, min(n, count)).long()


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

    return operands, {"eager": eager, "compile": c.compile(eager)}, check


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
    t, i, o = s["tokens"], s["inputs"], s["outputs"]

    def check(a, y):
        rows = rows_of(c.torch, o).to(c.device)
        return c.close(y[rows], a["dy"][:, rows].double().T @ a["x"].double())

    return lambda: {"dy": c.normal(t, o), "x": c.normal(t, i)}, {"eager": lambda a: a["dy"].T @ a["x"]}, check


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


def causal(c, s):
    """Shapes (trees, heads, length, head_dim) of the causal rows; prefix trees have no counterpart in SDPA."""
    f = c.torch.nn.functional
    length = s["length"]
    shape = (s["tokens"] // length, s["heads"], length, s["head_dim"])
    keys = (shape[0], s["kv_heads"], length, s["head_dim"])

    def operands():
        return {n: c.normal(*of).requires_grad_(True) for n, of in (("q", shape), ("k", keys), ("v", keys))} | {"do": c.normal(*shape)}

    def sdpa(a):
        return f.scaled_dot_product_attention(a["q"], a["k"], a["v"], is_causal=True, enable_gqa=shape[1] != keys[1])

    def expected(a):
        """The last tree and head, in float64."""
        group = shape[1] // keys[1]
        q, k, v = (a["q"][-1, -group:].double(), a["k"][-1, -1:].double(), a["v"][-1, -1:].double())
        scores = q @ k.transpose(-1, -2) / math.sqrt(s["head_dim"])
        mask = c.torch.ones(length, length, dtype=c.torch.bool, device=c.device).tril()
        return q, k, v, scores.masked_fill(~mask, -math.inf).softmax(-1)

    calls = {"sdpa": sdpa}
    if c.device == "cuda":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def cudnn(a):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return sdpa(a)

        calls["sdpa cudnn"] = cudnn
        flash = optional("flash_attn")
        if flash:

            def flash_call(a):
                q, k, v = (a[n].transpose(1, 2) for n in "qkv")
                return flash.flash_attn_func(q, k, v, causal=True).transpose(1, 2)

            calls["flash-attn"] = flash_call
    return operands, calls, expected


@op("attention_fwd")
def attention_fwd(c, s, _):
    if "length" not in s:
        return None
    operands, calls, expected = causal(c, s)

    def without_grad(call):
        def run(a):
            with c.torch.no_grad():
                return call(a)

        return run

    def check(a, o):
        _, _, v, p = expected(a)
        return c.close(o[-1, -p.shape[0] :], p @ v)

    return operands, {name: without_grad(call) for name, call in calls.items()}, check


@op("attention_bwd")
def attention_bwd(c, s, _):
    """Times the backward alone: the forward's graph is kept with the operands."""
    if "length" not in s:
        return None
    operands, calls, expected = causal(c, s)

    def backward(name, call):
        def run(a):
            if name not in a:
                a[name] = call(a)
            return c.torch.autograd.grad(a[name], (a["q"], a["k"], a["v"]), a["do"], retain_graph=True)

        return run

    def check(a, grads):
        q, k, v, p = expected(a)
        do = a["do"][-1, -p.shape[0] :].double()
        dp = do @ v.transpose(-1, -2)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(s["head_dim"])
        dv = (p.transpose(-1, -2) @ do).sum(0)
        return max(c.close(grads[0][-1, -p.shape[0] :], ds @ k), c.close(grads[2][-1, -1], dv))

    return operands, {name: backward(name, call) for name, call in calls.items()}, check


def head_operands(c, s):
    r, h, v = s["rows"], s["hidden"], s["vocab"]
    return lambda: {
        "x": c.normal(r, h).requires_grad_(True),
        "w": c.normal(v, h, scale=h**-0.5).requires_grad_(True),
        "t": c.torch.randint(0, v, (r,), device=c.device),
        "g": c.normal(r, dtype=c.torch.float32),
    }


def head_logp(c):
    """Log-probs of targets as a user of torch, and as TRL, computes them."""
    f = c.torch.nn.functional

    def eager(a):
        logits = f.linear(a["x"], a["w"]).float()
        return logits.log_softmax(-1).gather(1, a["t"][:, None])[:, 0]

    calls = {"eager": eager, "compile": c.compile(eager)}
    trl = optional("trl.trainer.utils")
    if trl:
        calls["trl"] = lambda a: trl.selective_log_softmax(f.linear(a["x"], a["w"]), a["t"])
    return calls


def head_expected(c, a, rows):
    logits = a["x"][rows].double() @ a["w"].double().T
    return logits.log_softmax(-1)


@op("head_logprob_fwd")
def head_fwd(c, s, _):
    def without_grad(call):
        def run(a):
            with c.torch.no_grad():
                return call(a)

        return run

    def check(a, y):
        rows = rows_of(c.torch, s["rows"], 4).to(c.device)
        with c.torch.no_grad():
            return c.close(y[rows], head_expected(c, a, rows).gather(1, a["t"][rows][:, None])[:, 0])

    return head_operands(c, s), {name: without_grad(call) for name, call in head_logp(c).items()}, check


@op("head_logprob_bwd")
def head_bwd(c, s, _):
    """Forward and backward: peers keep the logits between the two, or make them again; `mapl`'s backward makes them again."""

    def both(call):
        def run(a):
            return c.torch.autograd.grad(call(a), (a["x"], a["w"]), a["g"])

        return run

    def mean_loss(call):
        """Heads that know one scalar gradient: the cross-entropy's mean."""

        def run(a):
            return c.torch.autograd.grad(call(a), (a["x"], a["w"]))

        return run

    calls = {name: both(call) for name, call in head_logp(c).items()}
    liger = optional("liger_kernel.transformers") if c.device == "cuda" else None
    if liger:
        loss = liger.LigerFusedLinearCrossEntropyLoss()
        calls["liger cross-entropy"] = mean_loss(lambda a: loss(a["w"], a["x"], a["t"]))
    cce = optional("cut_cross_entropy") if c.device == "cuda" else None
    if cce:
        calls["cut-cross-entropy"] = mean_loss(lambda a: cce.linear_cross_entropy(a["x"], a["w"], a["t"]))
    quack = optional("quack.linear_cross_entropy") if c.device == "cuda" else None
    if quack:
        calls["quack"] = mean_loss(lambda a: quack.chunked_linear_cross_entropy(a["x"], a["w"], a["t"]))

    def check(a, grads, name=""):
        rows = rows_of(c.torch, s["rows"], 4).to(c.device)
        with c.torch.no_grad():
            p = head_expected(c, a, rows).exp()
            hit = c.torch.nn.functional.one_hot(a["t"][rows], s["vocab"]).double()
            scale = a["g"][rows].double()[:, None]
            if name in ("liger cross-entropy", "cut-cross-entropy", "quack"):
                scale = c.torch.full_like(scale, -1.0 / s["rows"])
            return c.close(grads[0][rows], (scale * (hit - p)) @ a["w"].double())

    return head_operands(c, s), calls, check


@op("adamw")
def adamw(c, s, _):
    n = s["len"]

    def operands():
        weight = c.torch.nn.Parameter(c.normal(n, scale=0.02))
        weight.grad = c.normal(n, scale=0.01)
        optimiser = c.torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.01, fused=True)
        return {"p": weight, "o": optimiser, "start": weight.detach()[:4096].double().clone(), "updates": 0}

    def run(a):
        a["updates"] += 1
        a["o"].step()
        return a["p"].detach()

    def check(a, p):
        # After the first update every element has moved by the rate along the sign of its gradient, and decayed.
        g = a["p"].grad[:4096].double()
        expected = a["start"] * (1 - 1e-8) - 1e-6 * g / (g.abs() + 1e-8)
        return c.close(p[:4096], expected) if a["updates"] == 1 else math.inf

    return operands, {"fused": run}, check


@op("grad_norm")
def grad_norm(c, s, _):
    return (
        lambda: {"g": c.normal(s["len"], scale=0.01, dtype=c.torch.float32)},
        {"eager": lambda a: c.torch.nn.utils.get_total_norm([a["g"]])},
        lambda a, y: c.close(y[None], a["g"].double().norm()[None]),
    )


def optional(name):
    """A module, or nothing where it is missing or does not load."""
    try:
        return importlib.import_module(name)
    except Exception:  # noqa: BLE001: a package may fail to load in any way
        return None


# Packages that have rows of their own, with the ops they have.
PACKAGES = {
    "trl": ["head_logprob_fwd", "head_logprob_bwd"],
    "liger_kernel": ["head_logprob_bwd"],
    "cut_cross_entropy": ["head_logprob_bwd"],
    "quack": ["head_logprob_bwd"],
    "flash_attn": ["attention_fwd", "attention_bwd"],
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", required=True, help="CSV of mapl bench")
    parser.add_argument("--output", required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rotate-mib", type=int, default=256)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return parser.parse_args()


def measure(args, torch, row, versions):
    """Rows of one row's call."""
    sizes = {k: int(v) for k, v in (part.split("=") for part in row["shape"].split())}
    blank = dict(row) | {
        "date": datetime.date.today().isoformat(),
        **{k: "" for k in ("samples", "calls", "median_us", "p20_us", "p80_us", "least_us", "gb_per_s", "tflop_per_s", "share")},
        **{k: "" for k in ("energy_mj", "others", "error_share", "note")},
    }
    absent = [
        blank | {"variant": package, "status": "absent", "note": "cannot be imported", "cache": ""}
        for package, ops in PACKAGES.items()
        if row["op"] in ops and versions[package] is None
    ]
    context = Context(torch, args.device, row["dtype"])
    made = OPS[row["op"]](context, sizes, row["layer"])
    if made is None:
        return absent
    operands, calls, check = made
    if args.no_compile:
        calls = {name: call for name, call in calls.items() if name != "compile"}
    count = max(1, min(64, math.ceil(args.rotate_mib * 2**20 / max(int(row["bytes"]), 1))))
    sets = [operands() for _ in range(count)]
    result, good, errors = list(absent), {}, {}
    for name, call in calls.items():
        variant = f"torch {torch.__version__.split('+')[0]} {name}" if name in ("eager", "compile", "sdpa", "sdpa cudnn", "fused") else name
        if variant == "trl":
            variant = f"trl {versions['trl']}"
        try:
            fresh = operands()
            got = call(fresh)
            error = check(fresh, got, name) if row["op"] == "head_logprob_bwd" else check(fresh, got)
            if not error <= 1.0:
                raise ValueError(f"its result is wrong: {error:.2f} times what is allowed")
            good[variant], errors[variant] = call, error
            del fresh, got
        except Exception as why:  # noqa: BLE001: whatever fails is a row
            note = " ".join(f"{type(why).__name__}: {why}".split())[:300]
            result.append(blank | {"variant": variant, "status": "failed", "note": note, "cache": ""})
    times = Timer(torch, args.device, args.repeats, args.seconds).times(good, sets) if good else {}
    for variant, t in times.items():
        seconds = 1e-6 * t["median_us"]
        new = blank | {"variant": variant, "status": "measured", "error_share": errors[variant], **t}
        new["gb_per_s"] = 1e-9 * int(row["bytes"]) / seconds
        new["tflop_per_s"] = 1e-12 * int(row["flops"]) / seconds
        if row["memory_gb_per_s"] and row["share"]:
            # The same floor over another time.
            new["share"] = float(row["share"]) * float(row["median_us"]) / t["median_us"]
        result.append(new)
    return result


def main():
    args = arguments()
    import torch

    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    versions = {package: getattr(module, "__version__", "unknown") if (module := optional(package)) else None for package in PACKAGES}
    with open(args.rows, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] == "mapl" and row["status"] == "measured"]
    result = []
    for row in rows:
        if row["op"] not in OPS:
            continue
        for new in measure(args, torch, row, versions):
            result.append(new)
            told = new["note"] or f"{float(new['median_us']):.2f} us"
            print(f"{new['op']:<18} {new['variant']:<26} {new['shape']}: {new['status']} {told}", flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    if rows:
        with open(args.output, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(result)


if __name__ == "__main__":
    main()
