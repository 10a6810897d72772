"""Times the ops of a file of `mapl bench` rows with PyTorch and what builds on it, and writes rows of the same columns.

Shapes, bytes, FLOPs and ceilings come from the rows, so both sides speak of the same calls. Every contender's result is
compared with a float64 computation before it is timed; one that is wrong is a failed row. A package that cannot be imported
is an absent row. Contenders run in a process of their own, which is ended and begun anew where one hangs, crashes or breaks the
device: that costs this contender its row, and no other.
"""

import argparse
import csv
import importlib
import math
import os
import sys
import time

from timing import Absent, Channel, Context, NotRecorded, Watched, ask, blank, measure

OPS = {}


def op(*names):
    """Registers the contenders of ops: a function of (context, sizes) to (operands, {name: call}, check)."""

    def register(function):
        OPS.update({name: function for name in names})
        return function

    return register


def lazily(module, make):
    """A contender that a module makes, which is imported by the first call: one that breaks then costs its own row alone."""
    made = []

    def call(a):
        if not made:
            try:
                made.append(make(importlib.import_module(module)))
            except Exception as why:  # noqa: BLE001  (a package may fail to load in any way)
                raise Absent(f"{type(why).__name__}: {why}") from None
        return made[0](a)

    return call


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
    """`mapl` writes this gradient in f32; with bf16 operands torch does so only when asked to."""
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
    if c.low:

        def flash(module):
            def run(a):
                q, k, v = (a[n].transpose(1, 2) for n in "qkv")
                return module.flash_attn_func(q, k, v, causal=True).transpose(1, 2)

            return run

        calls["flash-attn"] = lazily("flash_attn", flash)
    return operands, calls, expected


def backward_alone(c, name, call, inputs, gradient):
    """A call that repeats the backward: the forward's graph is kept with the operands."""

    def run(a):
        if name not in a:
            a[name] = call(a)
        return c.torch.autograd.grad(a[name], [a[i] for i in inputs], a[gradient], retain_graph=True)

    return run


@op("attention_fwd")
def attention_fwd(c, s, _):
    if "length" not in s:
        return None
    operands, calls, expected = causal(c, s)

    def check(a, o):
        _, _, v, p = expected(a)
        return c.close(o[-1, -p.shape[0] :], p @ v)

    return operands, c.without_grad(calls), check


@op("attention_bwd")
def attention_bwd(c, s, _):
    if "length" not in s:
        return None
    operands, calls, expected = causal(c, s)

    def check(a, grads):
        q, k, v, p = expected(a)
        do = a["do"][-1, -p.shape[0] :].double()
        dp = do @ v.transpose(-1, -2)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(s["head_dim"])
        dv = (p.transpose(-1, -2) @ do).sum(0)
        return max(c.close(grads[0][-1, -p.shape[0] :], ds @ k), c.close(grads[2][-1, -1], dv))

    return operands, {name: backward_alone(c, name, call, "qkv", "do") for name, call in calls.items()}, check


def head_operands(c, s):
    r, h, v = s["rows"], s["hidden"], s["vocab"]
    return lambda: {
        "x": c.normal(r, h).requires_grad_(True),
        "w": c.normal(v, h, scale=h**-0.5).requires_grad_(True),
        "t": c.torch.randint(0, v, (r,), device=c.device),
        "g": c.normal(r, dtype=c.torch.float32),
    }


def head_logits(c):
    """Log-probs of targets from stored logits, as a user of torch, and as TRL, computes them."""
    f = c.torch.nn.functional

    def eager(a):
        logits = f.linear(a["x"], a["w"]).float()
        return logits.log_softmax(-1).gather(1, a["t"][:, None])[:, 0]

    def trl(module):
        return lambda a: module.selective_log_softmax(f.linear(a["x"], a["w"]), a["t"])

    return {"eager": eager, "compile": c.compile(eager), "trl logits": lazily("trl.trainer.utils", trl)}


def head_chunks(c):
    """Log-probs of targets without stored logits, with a gradient for each, so the backward makes the logits anew."""

    def trl(module):
        # The chunk and the outputs with which TRL's DPO loss calls it.
        more = (1.0, 32768, None, 1.0, ("log_probs",))
        return lambda a: module.ChunkedLogProbFunction.apply(a["x"], a["w"], None, a["t"], *more)[0]

    def cut(**more):
        return lambda module: lambda a: -module.linear_cross_entropy(a["x"], a["w"], a["t"], reduction="none", **more)

    calls = {"trl chunked": lazily("trl.kernels.chunked_logprob", trl)}
    if c.low:
        # It leaves out blocks of the gradient whose probabilities are small, unless told not to.
        calls["cut-cross-entropy"] = lazily("cut_cross_entropy", cut())
        calls["cut-cross-entropy unfiltered"] = lazily("cut_cross_entropy", cut(filter_eps=None))
    return calls


def detached(call):
    """Some libraries compute gradients in the forward for whatever asks for them, `no_grad` or not."""
    return lambda a: call(a | {name: a[name].detach() for name in "xw"})


@op("head_logprob_fwd")
def head_fwd(c, s, _):
    def liger(module):
        loss = module.LigerFusedLinearCrossEntropyLoss(reduction="none")
        return lambda a: -loss(a["w"], a["x"], a["t"])

    def check(a, y):
        rows = rows_of(c.torch, s["rows"], 4).to(c.device)
        with c.torch.no_grad():
            logits = a["x"][rows].double() @ a["w"].double().T
            return c.close(y[rows], logits.log_softmax(-1).gather(1, a["t"][rows][:, None])[:, 0])

    calls = head_logits(c) | head_chunks(c)
    calls.pop("cut-cross-entropy unfiltered", None)
    if c.low:
        calls["liger"] = lazily("liger_kernel.transformers", liger)
    return head_operands(c, s), c.without_grad({name: detached(call) for name, call in calls.items()}), check


@op("head_logprob_bwd")
def head_bwd(c, s, _):
    """Three products for everyone, as for `mapl`: forward and backward where a peer keeps the logits or makes gradients in
    the forward, the backward alone where it makes the logits anew."""

    def both(call):
        return lambda a: c.torch.autograd.grad(call(a), (a["x"], a["w"]), a["g"])

    def mean(make):
        """Heads that make the gradients in the forward know one scalar for all rows: that of the cross-entropy's mean."""

        def made(module):
            call = make(module)
            return lambda a: c.torch.autograd.grad(call(a), (a["x"], a["w"]))

        return made

    def liger(module):
        loss = module.LigerFusedLinearCrossEntropyLoss()
        return lambda a: loss(a["w"], a["x"], a["t"])

    def quack(module):
        return lambda a: module.chunked_linear_cross_entropy(a["x"], a["w"], a["t"])

    calls = {name: both(call) for name, call in head_logits(c).items()}
    calls |= {name: backward_alone(c, name, call, "xw", "g") for name, call in head_chunks(c).items()}
    means = {"liger": ("liger_kernel.transformers", liger), "quack": ("quack.linear_cross_entropy", quack)}
    if c.low:
        calls |= {name: lazily(module, mean(make)) for name, (module, make) in means.items()}
    lse = []

    def check(a, grads, name):
        with c.torch.no_grad():
            if not lse:
                lse.append(normalisers(c, a["x"], a["w"]))
            mean = c.torch.full_like(lse[0], -1.0 / len(lse[0]))
            return gradients_close(c, a, lse[0], mean if name in means else a["g"].double(), grads)

    return head_operands(c, s), calls, check


def normalisers(c, x, w):
    """Logarithm of every row's sum of exponentials, its products in f32."""
    wide = w.float()
    return c.torch.cat([(part.float() @ wide.T).logsumexp(-1) for part in x.split(1024)]).double()


def gradients_close(c, a, lse, scale, grads):
    """Rows of the hidden rows' gradient, and of the weight's those of these rows' words, for gradients of log-probs."""
    rows = rows_of(c.torch, len(lse), 4).to(c.device)
    x, w, words, scale = a["x"].double(), a["w"].detach(), a["t"][rows], scale[:, None]
    p = (x[rows] @ w.double().T - lse[rows, None]).exp()
    p[c.torch.arange(len(rows)), words] -= 1
    hidden = c.close(grads[0][rows], (-scale[rows] * p) @ w.double())
    hit = (a["t"][:, None] == words).double()
    weight = (scale * (hit - (x @ w[words].double().T - lse[:, None]).exp())).T @ x
    return max(hidden, c.close(grads[1][words], weight))


REFERENCE = " with reference"


@op("head_preference")
def head_preference(c, s, _):
    """DPO's head: log-probs of pairs' responses, their loss and all gradients. The reference's sums of log-probs are given, as in
    `mapl`'s op, or made from its own hidden rows and head (`with reference`). Liger's loss takes none as given, so without its
    reference it has zeros there: the same work."""
    f, beta = c.torch.nn.functional, 0.1
    response = max(1, min(256, s["rows"] // 8))
    pairs = s["rows"] // (2 * response)

    def operands():
        r, h, v = 2 * pairs * response, s["hidden"], s["vocab"]
        made = {"t": c.torch.randint(0, v, (r,), device=c.device)}
        for x, w in ("xw", ("rx", "rw")):
            made[x], made[w] = c.normal(r, h), c.normal(v, h, scale=h**-0.5)
        made["base"] = c.normal(2 * pairs, scale=5.0, dtype=c.torch.float32) - response * (math.log(v) + 0.5)
        return made | {name: made[name].requires_grad_(True) for name in "xw"}

    def loss(scores, base):
        gap = (scores - base).unflatten(0, (2, -1))
        return -f.logsigmoid(beta * (gap[0] - gap[1])).mean()

    def sums(logp):
        return logp.unflatten(0, (2 * pairs, response)).float().sum(-1)

    def pair_loss(head, reference):
        def run(a):
            base = a["base"]
            if reference:
                with c.torch.no_grad():
                    base = sums(head({"x": a["rx"], "w": a["rw"], "t": a["t"]}))
            return c.torch.autograd.grad(loss(sums(head(a)), base), (a["x"], a["w"]))

        return run

    def liger(reference):
        def made(module):
            fused = module.LigerFusedLinearDPOLoss(ignore_index=-100, beta=beta, compiled=not c.no_compile, use_ref_model=reference)

            def run(a):
                x, t, rx = (a[name].unflatten(0, (2 * pairs, response)) for name in ("x", "t", "rx"))
                more = (None, rx, a["rw"], None) if reference else ()
                return c.torch.autograd.grad(fused(a["w"], x, t, *more)[0], (a["x"], a["w"]))

            return run

        return made

    heads = {name: head for name, head in (head_logits(c) | head_chunks(c)).items() if name == "eager" or name.startswith("trl")}
    calls = {}
    for name, head in heads.items():
        calls |= {name + REFERENCE * with_it: pair_loss(head, with_it) for with_it in (False, True)}
    if c.low:
        calls |= {"liger dpo" + REFERENCE * with_it: lazily("liger_kernel.chunked_loss", liger(with_it)) for with_it in (False, True)}
    known = {}

    def scores(a, x, w):
        lse = normalisers(c, x, w)
        return lse, sums((x.double() * w.double()[a["t"]]).sum(-1) - lse).double()

    def check(a, grads, name):
        with c.torch.no_grad():
            if not known:
                known["lse"], known["own"] = scores(a, a["x"], a["w"].detach())
                known["base"] = scores(a, a["rx"], a["rw"])[1]
            base = known["base"] if name.endswith(REFERENCE) else c.torch.zeros_like(known["own"]) if "liger" in name else a["base"].double()
            gap = (known["own"] - base).unflatten(0, (2, -1))
            slope = beta * c.torch.sigmoid(-beta * (gap[0] - gap[1])) / pairs
            return gradients_close(c, a, known["lse"], c.torch.cat([-slope, slope]).repeat_interleave(response), grads)

    return operands, calls, check


@op("adamw")
def adamw(c, s, _):
    """Weights and state in f32, as `mapl` holds them; with activations of bf16 the weights are copied to that after the update."""
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
        # The first update moves every element by the rate along the sign of its gradient, and decays it.
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
        # The stream on which calls can be recorded.
        torch.cuda.set_stream(torch.cuda.Stream())

    def said(what):
        channel.say(doing=what)

    for task in channel.tasks():
        try:
            row, context = task["row"], Context(torch, args.device, task["row"]["dtype"], args.no_compile)
            sizes = {k: int(v) for k, v in (part.split("=") for part in row["shape"].split())}
            made = OPS[row["op"]](context, sizes, row["layer"])
            rows, compiling = measure(args, torch, made, task, said) if made else ([], 0.0)
        except NotRecorded as why:
            channel.say(broken=str(why), recording=True)
            return
        except Exception as why:  # noqa: BLE001  (where all of a call fails, or the device no longer answers)
            channel.say(broken=f"{type(why).__name__}: {why}")
            return
        if args.device == "cuda":
            torch.cuda.empty_cache()
        channel.say(rows=rows, compiling=compiling)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="CSV of mapl bench")
    parser.add_argument("--output", required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of samples of a call, of all contenders together")
    parser.add_argument("--longest", type=float, default=10.0, help="contenders whose least samples take longer are skipped")
    parser.add_argument("--patience", type=float, default=45.0, help="seconds without a sign of life before a contender is ended")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which what is left is skipped")
    parser.add_argument("--rotate-mib", type=int, default=256)
    parser.add_argument("--compile-seconds", type=float, default=60.0, help="seconds that torch.compile may take in all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-graph", action="store_true", help="record no calls on cuda")
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
            if row["op"] not in OPS or (row["op"].startswith("attention") and "length" not in row["shape"]):
                continue
            out = time.monotonic() >= deadline
            for new in [blank(row, "torch", "skipped", "no time left")] if out else ask(peer, row, state, deadline):
                told = f"{float(new['median_us']):.2f} us" if new["status"] == "measured" else new["note"]
                print(f"{new['op']:<18} {new['variant']:<28} {new['shape']}: {new['status']} {told}", flush=True)
                if "No module named 'torch'" in new["note"]:
                    raise SystemExit(new["note"])
                writer.writerow(new)
            file.flush()
    peer.stop()
    return None


if __name__ == "__main__":
    main()
