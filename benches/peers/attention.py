"""Contenders of attention: FlexAttention, SDPA, flash-attn and MagiAttention, on causal rows and on trees of a prompt with two
responses. SDPA and flash-attn have no mask of trees."""

import importlib.util
import math

from contenders import backward_only, lazily, op
from masks import ranges, sees
from timing import Absent


def flex(c, s, length, **options):
    """FlexAttention with the mask as a function. Compiled on a GPU, where its kernels are. `BACKEND="FLASH"` runs those of
    flash-attn-4 instead of Triton's."""

    def make(module):
        def mask_of(batch, head, q, k):
            return sees(q, k, s.get("prompt"), s.get("response"))

        mask = module.create_block_mask(mask_of, None, None, length, length, device=c.device)
        attention = c.torch.compile(module.flex_attention, dynamic=False) if c.device == "cuda" else module.flex_attention
        gqa = {"enable_gqa": s["heads"] != s["kv_heads"]} | ({"kernel_options": options} if options else {})
        # On the CPU, FlexAttention rejects inputs that require a gradient.
        inputs = (lambda a: [a[n].detach() for n in "qkv"]) if c.device == "cpu" else (lambda a: [a[n] for n in "qkv"])
        return lambda a: attention(*inputs(a), block_mask=mask, **gqa)

    return lazily("torch.nn.attention.flex_attention", make)


def magi(c, s, rows, length, deterministic):
    """MagiAttention's kernel for one device, with the mask as ranges. Its operands are of shape (tokens, heads, head_dim); results are
    viewed as those of the others. Written from its documentation; it has not been run."""

    def make(module):
        queries, keys, kinds = (
            c.torch.tensor(part, dtype=c.torch.int32, device=c.device) for part in ranges(rows, length, s.get("prompt"), s.get("response"))
        )

        def run(a):
            q, k, v = (a[f"{n} tokens"] for n in "qkv")
            mask = {"q_ranges": queries, "k_ranges": keys, "attn_type_map": kinds}
            return module.flex_flash_attn_func(q, k, v, **mask, deterministic=deterministic)[0]

        return run

    return lazily("magi_attention.api", make)


def by_head(x, rows):
    """A view of (tokens, heads, head_dim) as (rows, heads, length, head_dim)."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2)


def by_token(x):
    """A copy of (rows, heads, length, head_dim) as (tokens, heads, head_dim)."""
    return x.detach().transpose(1, 2).flatten(0, 1).contiguous()


class Attention:
    """Operands and calls of the forward, of shape (rows, heads, length, head_dim). Names of MAGI have operands by token."""

    MAGI = ("magi-attention", "magi-attention deterministic")

    def __init__(self, c, s):
        self.c, self.s = c, s
        self.prompt = s.get("prompt")
        self.length = s["length"] if self.prompt is None else self.prompt + 2 * s["response"]
        self.rows = s["tokens"] // self.length
        self.shape = (self.rows, s["heads"], self.length, s["head_dim"])
        self.keys = (self.rows, s["kv_heads"], self.length, s["head_dim"])
        # The by-token operands double the memory, so they are made only if magi_attention is installed.
        self.has_magi = c.low and importlib.util.find_spec("magi_attention") is not None

    def operands(self):
        made = {n: self.c.normal(*of).requires_grad_(True) for n, of in (("q", self.shape), ("k", self.keys), ("v", self.keys))}
        made["do"] = self.c.normal(*self.shape)
        if self.has_magi:
            made |= {f"{n} tokens": by_token(made[n]).requires_grad_(n != "do") for n in ("q", "k", "v", "do")}
        return made

    def calls(self, backward=False):
        c, s, f = self.c, self.s, self.c.torch.nn.functional
        calls = {"flex-attention": flex(c, s, self.length)}
        if c.low:
            calls["flex-attention flash"] = flex(c, s, self.length, BACKEND="FLASH")
            calls |= {name: magi(c, s, self.rows, self.length, "deterministic" in name) for name in self.MAGI}
        if self.prompt is not None:
            return calls

        def sdpa(a):
            return f.scaled_dot_product_attention(a["q"], a["k"], a["v"], is_causal=True, enable_gqa=self.shape[1] != self.keys[1])

        calls["sdpa"] = sdpa
        if c.device == "cuda":
            from torch.nn.attention import SDPBackend, sdpa_kernel

            def cudnn(a):
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    return sdpa(a)

            calls["sdpa cudnn"] = cudnn
        if c.low:

            def flash(**more):
                def made(module):
                    def run(a):
                        q, k, v = (a[n].transpose(1, 2) for n in "qkv")
                        out = module.flash_attn_func(q, k, v, causal=True, **more)
                        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

                    return run

                return made

            # FlashAttention-3 and 4 are separate packages.
            packages = {"flash-attn": "flash_attn", "flash-attn-3": "flash_attn_interface", "flash-attn-4": "flash_attn.cute"}
            for name, module in packages.items():
                calls[name] = lazily(module, flash())
                # The forward passes of these packages are always deterministic.
                if backward:
                    calls[f"{name} deterministic"] = lazily(module, flash(deterministic=True))
        return calls

    def expected(self, a):
        """Queries, keys, values and probabilities of the last row and key head, in float64."""
        torch, group = self.c.torch, self.shape[1] // self.keys[1]
        q, k, v = (a["q"][-1, -group:].double(), a["k"][-1, -1:].double(), a["v"][-1, -1:].double())
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.s["head_dim"])
        at = torch.arange(self.length, device=self.c.device)
        mask = sees(at[:, None], at[None, :], self.prompt, self.s.get("response"))
        return q, k, v, scores.masked_fill(~mask, -math.inf).softmax(-1)


def no_backward(_):
    raise Absent("FlexAttention has no backward on the CPU")


@op("attention_fwd")
def attention_fwd(c, s, _):
    of = Attention(c, s)

    def check(a, o):
        _, _, v, p = of.expected(a)
        return c.close(o[-1, -p.shape[0] :], p @ v)

    calls = of.calls()
    for name in set(calls) & set(of.MAGI):
        calls[name] = lambda a, call=calls[name]: by_head(call(a), of.rows)
    return of.operands, c.without_grad(calls), check


@op("attention_bwd")
def attention_bwd(c, s, _):
    of = Attention(c, s)
    calls = of.calls(backward=True)
    if c.device == "cpu":
        calls["flex-attention"] = no_backward

    def check(a, grads):
        q, k, v, p = of.expected(a)
        do = a["do"][-1, -p.shape[0] :].double()
        dp = do @ v.transpose(-1, -2)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(s["head_dim"])
        dv = (p.transpose(-1, -2) @ do).sum(0)
        return max(c.close(grads[0][-1, -p.shape[0] :], ds @ k), c.close(grads[2][-1, -1], dv))

    def backward(name, call):
        if name not in of.MAGI:
            return backward_only(c, name, call, "qkv", "do")
        run = backward_only(c, name, call, [f"{n} tokens" for n in "qkv"], "do tokens")
        return lambda a: [by_head(grad, of.rows) for grad in run(a)]

    return of.operands, {name: backward(name, call) for name, call in calls.items()}, check
