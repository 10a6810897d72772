"""What the contenders of ops.py and heads.py are registered with, and what several of them are made by."""

import importlib

from timing import Absent

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


def backward_alone(c, name, call, inputs, gradient):
    """A call that repeats the backward: the forward's graph is kept with the operands."""

    def run(a):
        if name not in a:
            a[name] = call(a)
        return c.torch.autograd.grad(a[name], [a[i] for i in inputs], a[gradient], retain_graph=True)

    return run
