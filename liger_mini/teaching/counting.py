"""What figures show, counted: FLOPs and bytes by formula and as they happen (05, 10), parameters, and how a gate keeps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from unittest import mock

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liger_mini.recurrences.loops import CHUNK


def crossover(lengths: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The length at which a ratio first rises to 1, on a straight line in log-log between two lengths; None if nowhere.

    Args:
        lengths: rising, > 0. ratios: one for each, > 0, for example softmax's time over Liger's.
    Raises:
        ValueError: numbers that do not fit each other, or that have no logarithm.
    """
    if len(lengths) != len(ratios) or not lengths:
        raise ValueError(f"{len(lengths)} lengths and {len(ratios)} ratios; there must be as many, and at least one")
    if list(lengths) != sorted(set(lengths)) or min(*lengths, *ratios) <= 0:
        raise ValueError(f"lengths {list(lengths)} must rise, and they and the ratios {list(ratios)} must be > 0")
    for i in range(1, len(lengths)):
        if ratios[i - 1] < 1 <= ratios[i]:
            share = -math.log(ratios[i - 1]) / math.log(ratios[i] / ratios[i - 1])
            return lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** share
    return None


def prefill_flops(T: int, width: int, window: int, chunk: int = CHUNK) -> tuple[float, float]:
    """FLOPs a token and head of a causal prefill over T tokens, K = V = width: (softmax, recurrence + window).

    softmax          T/2 keys on average, scores and values:   T (K + V)
    recurrence       read and write the state, and the chunk:  4 K V + (C - 1) (K + V)
    blocked window   every query sees a block of 2 W keys:     4 W (K + V)
    """
    _positive(T=T, width=width, window=window, chunk=chunk)
    both = 2 * width
    return T * both, 4 * width**2 + (chunk - 1) * both + 4 * min(window, T) * both


def decode_bytes(T: int, width: int, window: int) -> tuple[float, float]:
    """Bytes one token moves in one key/value head at context T, float32, K = V = width: (softmax, Liger).

    softmax    reads T keys and T values:                       4 · 2 T K
    Liger      reads and writes the state, reads the window:    4 · (2 K V + 2 W K)
    """
    _positive(T=T, width=width, window=window)
    return 4 * 2 * T * width, 4 * (2 * width**2 + 2 * min(window, T) * width)


COSTS = {"prefill FLOPs": prefill_flops, "decode bytes": decode_bytes}


class Traffic(TorchDispatchMode):
    """Counts what PyTorch's operations move while it is entered: bytes read and written, and the largest tensor made.

    Attributes:
        bytes: of the inputs and outputs of every operation that is more than a view. largest: of the largest output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), out))
        fresh = {x.untyped_storage().data_ptr() for x in made} - {x.untyped_storage().data_ptr() for x in given}
        if fresh or func._schema.is_mutable:  # a view shares its storage with an input
            self.bytes += sum(x.numel() * x.element_size() for x in (*given, *made))
            self.largest = max(self.largest, *(x.numel() * x.element_size() for x in made), 0)
        return out


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} = {value!r}: allowed are whole numbers ≥ 1")


GPUS = {  # NVIDIA's data sheets, dense: FLOP/s of products in each format, bytes/s of memory, SMs
    "A100": {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12, "memory": 2.0e12, "SMs": 108},
    "H100": {"bfloat16": 989e12, "tf32": 495e12, "float32": 67e12, "memory": 3.35e12, "SMs": 132},
}


FORMATS = ("bfloat16", "tf32", "float32")


FORMS = ("softmax", "gate per head", "gate per channel")


WIDTH, KERNEL_CHUNK, ROW = 128, 64, 16  # K = V of the estimates; C of the kernels, and tokens in a row of it


class Work:
    """Counts what kernels do in Triton's interpreter while it is entered.

    Attributes:
        flops: of products (`tl.dot`). bytes: of floating point numbers that are loaded and stored, masked ones left out.
    """

    def __enter__(self) -> Work:
        from triton.runtime.interpreter import InterpreterBuilder as builder

        self.flops = self.bytes = 0
        dot, load, store = builder.create_dot, builder.create_masked_load, builder.create_masked_store

        def count_dot(that, a, b, *rest):
            self.flops += 2 * math.prod(a.data.shape) * b.data.shape[-1]
            return dot(that, a, b, *rest)

        def count_load(that, ptrs, mask, *rest):
            self._move(ptrs, mask)
            return load(that, ptrs, mask, *rest)

        def count_store(that, ptrs, value, mask, *rest):
            self._move(ptrs, mask)
            return store(that, ptrs, value, mask, *rest)

        counters = {"create_dot": count_dot, "create_masked_load": count_load, "create_masked_store": count_store}
        self._patches = contextlib.ExitStack()
        for name, counter in counters.items():
            self._patches.enter_context(mock.patch.object(builder, name, counter))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()

    def _move(self, ptrs, mask) -> None:
        kind = ptrs.get_element_ty()
        if kind.is_floating():  # the tables of chunks are integers, a few bytes per chunk
            self.bytes += int(mask.data.sum()) * kind.primitive_bitwidth // 8


def kernel_cost(
    form: str, T: int, *, width: int = WIDTH, chunk: int = KERNEL_CHUNK, number: int = 2
) -> tuple[float, float]:
    """(FLOPs of products, bytes between memory and chip) a token and head, forward, K = V = width.

    softmax           T (K + V), half of all pairs;              q, k, v, o once each
    gate per head     4 K V + 2 C (K + V);                       q, o once, k, v and the gate twice; a state per chunk, written
    gate per channel  4 K V + 2 C V + 2 C K (R - 1) + 2 N K L    and read, and the first and last one
                      + 6 K (2 N + N L) for sums of gates

    With a gate per channel a kernel of its own makes the products q k, in R = C / N rows of N = 16 tokens (L = log₂ N). It alone
    reads q, k and the gates. It hands on both, decayed, what a state keeps over a chunk, and (C + N) / 2 products a token, of
    which C are read.

    Every tile counts once: blocks that read it again are taken to find it in the L2 cache.

    Args:
        form: "softmax", "gate per head" or "gate per channel". T: tokens. chunk: C. number: bytes of one in q, k, v and o;
            gates and states have 4.
    Raises:
        ValueError: another form, or a size that is not allowed.
    """
    _sizes(form, T=T, width=width, chunk=chunk)
    if form == "softmax":
        return 2.0 * T * width, 4.0 * number * width
    products = 4 * width**2 + 4 * chunk * width
    moved = (
        number * 6 * width + number * width**2 * 2 / chunk + 4 * width**2 * 2 / T
    )  # states are kept as the inputs are
    if form == "gate per head":
        return float(products), moved + 8
    N = min(ROW, chunk)
    products += 2 * chunk * width * (chunk // N - 2) + 2 * N * width * _levels(N)
    moved += number * (3 * width + (chunk + N) / 2 + chunk) + 4 * width * (1 + 2 / chunk)
    return float(products + 6 * width * (2 * N + N * _levels(N))), moved


def estimated_seconds(
    form: str, gpu: str, T: int, *, width: int = WIDTH, chunk: int = KERNEL_CHUNK
) -> tuple[float, float]:
    """A token and head at the peaks: (arithmetic, memory); a kernel takes at least the larger of the two.

    All products are of bfloat16, but for the triangle that a gate per channel needs: its tiles are computed, and read as tf32.
    """
    peaks = peaks_of(gpu)
    flops, moved = kernel_cost(form, T, width=width, chunk=chunk)
    triangle = 0
    if form == "gate per channel":
        N = min(ROW, chunk)
        triangle = 2 * chunk * width * (chunk // N - 1) + 2 * N * width * _levels(N)
    return (flops - triangle) / peaks["bfloat16"] + triangle / peaks["tf32"], moved / peaks["memory"]


def _levels(chunk: int) -> int:
    return chunk.bit_length() - 1


def _sizes(form: str, **sizes: int) -> None:
    if form not in FORMS:
        raise ValueError(f"form = {form!r}: allowed are {', '.join(map(repr, FORMS))}")
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value!r}: allowed are whole numbers ≥ 1")
    if sizes["chunk"] & (sizes["chunk"] - 1):
        raise ValueError(f"chunk = {sizes['chunk']}: allowed are powers of two, since a chunk is halved")


def estimated_crossover(form: str, gpu: str, *, chunk: int = KERNEL_CHUNK) -> float | None:
    """The length at which the estimate for softmax rises over that of a recurrence."""
    lengths = [2**n for n in range(6, 18)]
    seconds = {name: [max(estimated_seconds(name, gpu, T, chunk=chunk)) for T in lengths] for name in ("softmax", form)}
    return crossover(lengths, [s / x for s, x in zip(seconds["softmax"], seconds[form])])


def peaks_of(name: str) -> dict[str, float]:
    if name not in GPUS:
        raise ValueError(f"gpu = {name!r}: allowed are {', '.join(map(repr, GPUS))}")
    return GPUS[name]


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """p of values ~ lengths^p: the slope of a straight line through the points on two logarithmic axes.

    Raises:
        ValueError: fewer than two lengths, as many values as lengths missing, or a number that is not positive.
    """
    check_series(lengths, {"values": values})
    if len(lengths) < 2 or min(*lengths, *values) <= 0:
        raise ValueError(f"an exponent needs two or more positive points; given are {list(lengths)}, {list(values)}")
    x, y = (torch.tensor(points, dtype=torch.float64).log() for points in (lengths, values))
    x, y = x - x.mean(), y - y.mean()
    return ((x @ y) / (x @ x)).item()


def check_series(lengths: Sequence[int], series: Mapping[str, Sequence[float]]) -> None:
    if not series or not len(lengths):
        raise ValueError("nothing to draw: give at least one series with at least one point")
    for name, values in series.items():
        if len(values) != len(lengths):
            raise ValueError(f"{name!r} has {len(values)} values for {len(lengths)} points; they must be as many")


PARTS = ("channel", "kind of token", "which token", "context")


def share_left(
    log_gate: Float[Tensor, "B T *heads"], age: int, weight: Float[Tensor, "B T *heads"] | None = None
) -> Float[Tensor, "*heads"]:
    """The share of what a token wrote that is left `age` tokens later, averaged over the tokens: mean of exp(Σ log α).

    Args:
        log_gate: [B, T] and any further axes (heads, channels), ≤ 0.
        weight: how much each token wrote into each channel, same shape; None counts every write alike.
    Raises:
        ValueError: an age that is negative or has no pair of tokens in T, or a weight of another shape.
    """
    T = log_gate.shape[1]
    if not 0 <= age < T:
        raise ValueError(f"age = {age} tokens: with T = {T} tokens, allowed are 0 to {T - 1}")
    if weight is not None and weight.shape != log_gate.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, log_gate {tuple(log_gate.shape)}; they must be equal"
        )
    total = log_gate.double().cumsum(1)
    left = (total[:, age:] - total[:, : T - age]).exp()
    if weight is None:
        return left.mean((0, 1))
    weight = weight[:, : T - age].double()
    return (left * weight).sum((0, 1)) / weight.sum((0, 1))


def variance_parts(
    P: Float[Tensor, "*tokens H C"], token: Int[Tensor, "*tokens"], kind: Int[Tensor, "*tokens"]
) -> dict[str, float]:
    """Where the variance of P comes from, as shares that sum to 1.

    channel: a fixed offset of every channel, whatever the token. kind of token: the mean of each kind around that.
    which token: the mean of each token around its kind's. context: the rest, the same token in different places.

    Args:
        token: token ids; each token has one kind. kind: numbers of the kinds.
    """
    if token.shape != P.shape[:-2] or kind.shape != token.shape:
        raise ValueError(
            f"P has shape {tuple(P.shape)}, token {tuple(token.shape)}, kind {tuple(kind.shape)}; "
            "token and kind must have P's shape without its last two axes"
        )
    P = P.double().flatten(-2).flatten(0, -2)
    P = P - P.mean()
    explained = [0.0]
    for groups in (torch.zeros_like(kind), kind, token):
        groups = groups.flatten().unique(return_inverse=True)[1]
        count = groups.bincount().unsqueeze(1)
        mean = P.new_zeros(len(count), P.shape[1]).index_add_(0, groups, P) / count
        explained.append((mean[groups].square().sum() / P.square().sum()).item())
    explained.append(1.0)
    return {part: max(high - low, 0.0) for part, low, high in zip(PARTS, explained, explained[1:])}


def parameters_by_kind(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameters of a model (name -> tensor of any shape) by the module that holds them, over all layers."""
    kinds: dict[str, int] = {}
    for name, tensor in state.items():
        kind = next((part for part in reversed(name.split(".")) if part not in ("weight", "bias")), name)
        kind = "norms" if kind.endswith("norm") else kind
        kinds[kind] = kinds.get(kind, 0) + tensor.numel()
    return kinds
