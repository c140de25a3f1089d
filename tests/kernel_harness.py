"""What the tests of the Triton kernels share: inputs and gates, results with every gradient, the definitions in float64.

The definitions have nothing from the package. The kernels run anywhere Triton can be installed: on a CUDA device, and
without one in Triton's interpreter, which conftest.py asks for before triton is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from liger_mini.kernels import delta, diagonal, scalar, slots, tiles, window

from liger_mini.experiments.equivalence import relative_rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
GATES = {
    "weak": lambda *shape: F.logsigmoid(torch.randn(*shape)) / 16,
    "mixed": lambda *shape: torch.where(torch.rand(*shape) < 0.3, -50.0, -0.05) * torch.rand(*shape),
    "exactly one": torch.zeros,
    "all exp(-50)": lambda *shape: torch.full(shape, -50.0),
    "forget everything": lambda *shape: torch.where(torch.rand(*shape) < 0.1, -1e30, -0.05),
    "a gate of 0": lambda *shape: torch.where(torch.rand(*shape) < 0.1, -torch.inf, -0.05),
}


def diagonal_step(q, k, v, log_gate, state):
    state = log_gate.exp().unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def scalar_step(q, k, v, log_gate, state):
    return diagonal_step(q, k, v, log_gate.unsqueeze(-1), state)  # every channel has the head's gate


def slots_step(q, k, v, write, log_gate, keys, values):
    alpha = log_gate.exp()
    keys = alpha.unsqueeze(-2) * keys + k.unsqueeze(-1) * write.unsqueeze(-2)  # K̃ᵀ, as in the package
    values = alpha.unsqueeze(-1) * values + write.unsqueeze(-1) * v.unsqueeze(-2)
    return ((q.unsqueeze(-2) @ keys).softmax(-1) @ values).squeeze(-2), keys, values


def delta_step(q, k, v, beta, log_gate, state):
    state = log_gate.exp().reshape(*log_gate.shape[:2], -1, 1) * state
    u = beta.unsqueeze(-1) * (v - (k.unsqueeze(-2) @ state).squeeze(-2))
    state = state + k.unsqueeze(-1) * u.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def loop(step, *inputs, states=1, cu_seqlens=None):
    """Token by token, from the states that come last; document after document if the row is packed.

    Where queries have more heads than keys, each has keys, gates and states of its own, equal in a group.
    """
    q, k, *_ = inputs
    G = q.shape[2] // k.shape[2]
    tokens = q, *(x.repeat_interleave(G, dim=2) for x in inputs[1:-states])
    before = [S.repeat_interleave(G, dim=1) for S in inputs[-states:]]
    ends = [0, tokens[0].shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    documents = [before] if cu_seqlens is None else zip(*(S.split(1) for S in before))
    outputs, after = [], []
    for start, end, S in zip(ends, ends[1:], documents):
        for t in range(start, end):
            o, *S = step(*(x[:, t] for x in tokens), *S)
            outputs.append(o)
        after.append(S)
    return torch.stack(outputs, dim=1), *(torch.cat(S)[:, ::G] for S in zip(*after))


def attention(q, k, v, window, key_mask=None, cu_seqlens=None, sinks=0):
    """All scores, and a mask that leaves window and sinks: the queries are the last positions."""
    Tq, Tk = q.shape[1], k.shape[1]
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    i, j = torch.arange(Tk - Tq, Tk, device=q.device).unsqueeze(1), torch.arange(Tk, device=q.device)
    seen = (j <= i) & (j > i - window)
    if sinks:  # a key with fewer than so many real ones of its document before it
        real = torch.ones(len(k), Tk, dtype=torch.bool, device=k.device) if key_mask is None else key_mask
        document = torch.zeros_like(j) if cu_seqlens is None else torch.repeat_interleave(cu_seqlens.diff())
        before = (document[:, None] == document) & (j < j[:, None])  # [Tk, Tk]
        number = (before & real[:, None, :]).sum(-1)  # [B, Tk]
        seen = (j <= i) & (seen | (number < sinks)[:, None, None, :])
    if cu_seqlens is not None:
        document = torch.repeat_interleave(cu_seqlens.diff())
        seen = seen & (document[i] == document[j])
    if key_mask is not None:
        seen = seen & key_mask[:, None, None, :]
    scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    p = scores.masked_fill(~seen, torch.finfo(q.dtype).min).softmax(-1) * seen  # 0 where no key is seen
    return torch.einsum("bhts,bshv->bthv", p, v)


def error_beside_ones(x, reference):
    """relative_rms, but where the reference is below 0.01, relative to that.

    A query that sees one key has p = 1 whatever q and k are: there dq and dk are 0, and the kernel's are 0 but for
    rounding.
    """
    return ((x.double() - reference).norm() / max(reference.norm(), 1e-2 * reference.numel() ** 0.5)).item()


class Kernel(NamedTuple):
    call: Callable
    definition: Callable
    states: tuple[str, ...] = ("state",)
    error: Callable = relative_rms


KERNELS = {
    "diagonal": Kernel(diagonal.triton_recurrence, functools.partial(loop, diagonal_step)),
    "scalar": Kernel(scalar.triton_recurrence, functools.partial(loop, scalar_step)),
    "delta": Kernel(delta.triton_recurrence, functools.partial(loop, delta_step)),
    "delta per channel": Kernel(delta.triton_recurrence, functools.partial(loop, delta_step)),
    "slots": Kernel(slots.triton_recurrence, functools.partial(loop, slots_step, states=2), ("keys", "values")),
    "window": Kernel(
        functools.partial(window.triton_window, window=7),
        functools.partial(attention, window=7),
        states=(),
        error=error_beside_ones,
    ),
}
RECURRENCES = [kind for kind, kernel in KERNELS.items() if kernel.states]


def inputs(kind, T, K=16, V=16, M=16, gates="weak", dtype=torch.float32, B=1, H=1, N=None, Tk=None, Hkv=None):
    """The kernel's inputs by name; states are not zero. Rounded to `dtype` here, so that both sides see the same.

    Args: N: documents, each with its states. Tk: for the window, keys in all. Hkv: their heads (for the window one, else H).
    """
    q = torch.randn(B, T, H, K) / (K**0.5 if kind == "slots" else 1)  # a softmax reads the slots
    H = Hkv or (1 if kind == "window" else H)
    keys = B, Tk or T, H
    args = {"q": q, "k": torch.randn(*keys, K), "v": torch.randn(*keys, V)}
    if kind == "slots":
        args["write"] = torch.rand(B, T, H, M)
    if kind.startswith("delta"):
        args |= {"k": F.normalize(args["k"], dim=-1), "beta": torch.rand(B, T, H)}
    args = {name: x.to(dtype) for name, x in args.items()}
    if kind != "window":
        args["log_gate"] = GATES[gates](B, T, H, *{"scalar": [], "delta": [], "slots": [M]}.get(kind, [K]))
    shapes = {"state": (K, V), "keys": (K, M), "values": (M, V)}
    args |= {name: torch.randn(N or B, H, *shapes[name]) for name in KERNELS[kind].states}
    return {name: x.to(DEVICE) for name, x in args.items()}


def named(kind, outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(("o", *(f"final {name}" for name in KERNELS[kind].states)), outputs, strict=True))


def results(kind, form, args, compute=None, **options):
    """Every result and the gradient of every input, by name; every result feeds the loss.

    Args: form: a kernel's `call` or its `definition`. compute: the dtype of its inputs, if not their own.
    """
    leaves = {name: x.detach().to(compute or x.dtype).requires_grad_() for name, x in args.items()}
    outputs = named(kind, form(*leaves.values(), **options))
    generator = torch.Generator().manual_seed(0)
    upstream = {name: torch.randn(x.shape, generator=generator) for name, x in outputs.items()}
    upstream["o"] = upstream["o"].to(args["v"].dtype)  # rounded as the kernel's o, so that both sides see the same
    upstream = [upstream[name].to(x) for name, x in outputs.items()]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream)
    return {**outputs, **{f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}}


def check(kind, args, **options):
    """The kernel's results are its definition's in float64, given the very same inputs. Returns the kernel's."""
    tolerance = max(TOLERANCE[x.dtype] for x in args.values())
    got = results(kind, KERNELS[kind].call, args, **options)
    expected = results(kind, KERNELS[kind].definition, args, torch.float64, **options)
    for name, x in got.items():
        error = KERNELS[kind].error(x, expected[name])
        assert error <= tolerance, f"{name}: relative RMS error {error:.1e}, allowed {tolerance:.0e}"
    return got


def watch(monkeypatch, name, watcher):
    """Let `watcher` see, and change, what the interpreter's operation `name` is given."""
    if not tiles.INTERPRETED:
        pytest.skip("what a compiled kernel computes cannot be watched")
    from triton.runtime.interpreter import InterpreterBuilder

    operation = getattr(InterpreterBuilder, name)
    monkeypatch.setattr(InterpreterBuilder, name, lambda self, *args: operation(self, *watcher(*args)))


def exponents(monkeypatch):
    """A list that gets the largest exponent of every exp."""
    seen = []
    watch(monkeypatch, "create_exp", lambda x: (seen.append(float(x.data.max())), [x])[1])
    return seen
