"""May the gradients of a kernel be believed on this GPU?

Triton from 3.4.0 up to, not including, 3.7.1 can compile the backward pass of a gated recurrence for Hopper so that its gradients
are wrong, without an error (flash-linear-attention, issue 640). There a kernel that is asked for by name has to show first,
on the caller's own tensors, that it agrees with the chunked form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

FAULTY = "3.4.0", "3.7.1"  # the first with the fault, and the first without
HOPPER = 9  # compute capability
TOKENS = 197  # three chunks, and a part of one
LIMIT = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of a gradient's size: well above rounding
_held: set[tuple] = set()


def doubtful(device: torch.device) -> bool:
    """Whether this device and Triton are known to make wrong gradients."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != HOPPER:
        return False
    import triton

    first, repaired = FAULTY
    return first <= TorchVersion(triton.__version__) < repaired


def check_gradients(
    recurrence: ModuleType, kernel: Callable, inputs: Sequence[Tensor], states: Sequence[Tensor]
) -> None:
    """Compare the kernel's gradients with the chunked form's, once for each dtype, width, number of heads and of chunks.

    Args:
        inputs, states: what the kernel is about to be given; the first row and at most `TOKENS` of it are read.
    Raises:
        RuntimeError: they differ.
    """
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *states))):
        return
    if not doubtful(inputs[0].device):
        return
    rows = [x[:1, :TOKENS] for x in inputs]
    chunks = -(-rows[0].shape[1] // 64)
    key = (recurrence.__name__, inputs[0].device, chunks, *((x.dtype, x.shape[2:]) for x in inputs))
    if key in _held:
        return
    ours = _gradients(kernel, rows, states)
    theirs = _gradients(recurrence.chunked, [x.float() for x in rows], states)
    limit = max(LIMIT[x.dtype] for x in inputs)
    for number, (x, y) in enumerate(zip(ours, theirs)):
        off = ((x.float() - y).norm() / y.norm().clamp(min=1e-12)).item()
        if not off <= limit:
            raise RuntimeError(
                f"backend = 'triton': here the gradient of input {number} is off by {off:.2g} of its size (allowed: {limit:g}). "
                f"Triton from {FAULTY[0]} up to {FAULTY[1]} is known for wrong gradients on this kind of GPU: install a newer "
                "one, or use backend = 'chunked'"
            )
    _held.add(key)


def _gradients(form: Callable, rows: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss in which every output and every last state counts, by every input."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in rows]
        results = form(*leaves, *(S[:1].detach() for S in states))
        dice = torch.Generator().manual_seed(0)
        weights = [torch.randn(x.shape, generator=dice).to(x.device) for x in results]
        return torch.autograd.grad(sum((x.float() * w).sum() for x, w in zip(results, weights)), leaves)
