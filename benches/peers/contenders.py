"""Registry of the contenders of ops.py and heads.py, and builders that several of them share."""

import importlib

from timing import Absent

OPS = {}


def op(*names):
    """Registers a function for the named ops: (context, sizes, layer) -> (operands, {contender: call}, check)."""

    def register(function):
        OPS.update({name: function for name in names})
        return function

    return register


def lazily(module, make):
    """A contender built from a module that its first call imports, so that a broken module costs only this contender's row."""
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


def backward_only(c, name, call, inputs, gradient):
    """A call that times only the backward pass: the autograd graph of the forward pass is kept with the operands."""

    def run(a):
        if name not in a:
            a[name] = call(a)
        return c.torch.autograd.grad(a[name], [a[i] for i in inputs], a[gradient], retain_graph=True)

    return run
