"""Contenders of the vocabulary head: log-probs of targets, their gradient, and the head fused with the DPO loss."""

import math

from contenders import backward_only, lazily, op, rows_of


def head_operands(c, s):
    r, h, v = s["rows"], s["hidden"], s["vocab"]
    return lambda: {
        "x": c.normal(r, h).requires_grad_(True),
        "w": c.normal(v, h, scale=h**-0.5).requires_grad_(True),
        "t": c.torch.randint(0, v, (r,), device=c.device),
        "g": c.normal(r, dtype=c.torch.float32),
    }


def head_logits(c):
    """Log-probs of targets from stored logits, as torch users and TRL compute them."""
    f = c.torch.nn.functional

    def eager(a):
        logits = f.linear(a["x"], a["w"]).float()
        return logits.log_softmax(-1).gather(1, a["t"][:, None])[:, 0]

    def trl(module):
        return lambda a: module.selective_log_softmax(f.linear(a["x"], a["w"]), a["t"])

    return {"eager": eager, "compile": c.compile(eager), "trl logits": lazily("trl.trainer.utils", trl)}


def trl_chunked(*more):
    """TRL's head in chunks, with the chunk size of its trainers and the outputs that are asked for besides log-probs."""

    def made(module):
        asked = (1.0, 32768, None, 1.0, ("log_probs", *more))
        return lambda a: module.ChunkedLogProbFunction.apply(a["x"], a["w"], None, a["t"], *asked)[0]

    return lazily("trl.kernels.chunked_logprob", made)


def head_chunks(c):
    """Log-probs of targets without stored logits, with a gradient per log-prob. The backward pass recomputes the logits."""

    def scaled(module):
        return lambda a: -module.LigerFusedLinearScaledCrossEntropyFunction.apply(a["x"], a["w"], a["t"])

    def cut(**more):
        return lambda module: lambda a: -module.linear_cross_entropy(a["x"], a["w"], a["t"], reduction="none", **more)

    # Liger's kernel needs a Hopper or Blackwell GPU; on other devices its torch fallback runs.
    calls = {"trl chunked": trl_chunked(), "liger scaled": lazily("liger_kernel.ops.fused_linear_scaled_cross_entropy", scaled)}
    if c.low:
        # By default, cut-cross-entropy skips gradient blocks with small probabilities.
        calls["cut-cross-entropy"] = lazily("cut_cross_entropy", cut())
        calls["cut-cross-entropy unfiltered"] = lazily("cut_cross_entropy", cut(filter_eps=None))
    return calls


def detached(call):
    """Detaches the operands: some libraries compute gradients in the forward pass if an operand requires them, even under `no_grad`."""
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
    """Three GEMMs for every contender, as for `mapl`. Peers that keep logits or compute gradients in the forward pass are timed on
    both passes, peers that recompute the logits only on the backward pass."""

    def both(call):
        return lambda a: c.torch.autograd.grad(call(a), (a["x"], a["w"]), a["g"])

    def mean(make):
        """Heads that compute gradients in the forward pass support only one scalar gradient, that of the mean cross-entropy."""

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
    calls |= {name: backward_only(c, name, call, "xw", "g") for name, call in head_chunks(c).items()}
    means = {"liger": ("liger_kernel.transformers", liger), "quack": ("quack.linear_cross_entropy", quack)}
    if c.low:
        calls |= {name: lazily(module, mean(make)) for name, (module, make) in means.items()}
    lse = []

    def check(a, grads, name):
        with c.torch.no_grad():
            if not lse:
                lse.append(logsumexp(c, a["x"], a["w"]))
            mean = c.torch.full_like(lse[0], -1.0 / len(lse[0]))
            return gradients_close(c, a, lse[0], mean if name in means else a["g"].double(), grads)

    return head_operands(c, s), calls, check


def logsumexp(c, x, w):
    """Logsumexp of every row; the GEMM runs in f32 for bf16 operands, else in f64."""
    wide = c.torch.float64 if c.dtype == c.torch.float32 else c.torch.float32
    w = w.to(wide)
    return c.torch.cat([(part.to(wide) @ w.T).logsumexp(-1) for part in x.split(1024)]).double()


def gradients_close(c, a, lse, scale, grads):
    """Checks gradients for given log-prob gradients: some rows of the hidden gradient, and the weight gradient of these rows' targets."""
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
    """Head of DPO: log-probs of pairs' responses, the loss and all gradients. The reference's summed log-probs are given, as in
    `mapl`'s op, or computed from the reference's hidden rows and head (`with reference`). Liger's DPO loss cannot take given sums;
    without a reference it uses zeros, which is the same work. Its scaled cross-entropy becomes a DPO head by one sum per response.
    TRL's trainer asks the policy's head for three statistics of each token too (`trl chunked metrics`)."""
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
                    base = sums(reference({"x": a["rx"], "w": a["rw"], "t": a["t"]}))
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

    heads = {name: head for name, head in (head_logits(c) | head_chunks(c)).items() if name.startswith(("eager", "trl", "liger scaled"))}
    heads["trl chunked metrics"] = trl_chunked("entropy", "mean_logits", "is_top1")
    calls = {}
    for name, head in heads.items():
        # The reference model's head computes log-probs only, without the metrics.
        reference = heads["trl chunked"] if name == "trl chunked metrics" else head
        calls |= {name: pair_loss(head, None), name + REFERENCE: pair_loss(head, reference)}
    if c.low:
        calls |= {"liger dpo" + REFERENCE * with_it: lazily("liger_kernel.chunked_loss", liger(with_it)) for with_it in (False, True)}
    known = {}

    def scores(a, x, w):
        lse = logsumexp(c, x, w)
        return lse, sums((x.double() * w.double()[a["t"]]).sum(-1) - lse).double()

    def check(a, grads, name):
        with c.torch.no_grad():
            if not known:
                known["lse"], known["own"] = scores(a, a["x"], a["w"].detach())
                known["base"] = scores(a, a["rx"], a["rw"])[1]
            base = known["base"] if name.endswith(REFERENCE) else c.torch.zeros_like(known["own"]) if name.startswith("liger dpo") else a["base"].double()
            gap = (known["own"] - base).unflatten(0, (2, -1))
            slope = beta * c.torch.sigmoid(-beta * (gap[0] - gap[1])) / pairs
            return gradients_close(c, a, known["lse"], c.torch.cat([-slope, slope]).repeat_interleave(response), grads)

    return operands, calls, check
