"""`check`: is it the same? An equivalence report that shows its numbers and fails when they are too large."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from liger_mini.experiments.equivalence import relative_rms
from liger_mini.support.tables import Table


def check(pairs: Mapping[str, tuple[Tensor, Tensor]], *, tolerance: float = 1e-5, caption: str = "") -> Table:
    """Compare computed tensors with their references, and say how far apart they are.

    The verdict is on the relative RMS error ‖x - y‖ / ‖y‖ (‖x‖ where the reference y is 0), in float64.

    Args:
        pairs: name -> (computed, reference), tensors of the same shape.
        tolerance: the largest relative RMS error that is "ok".
    Returns:
        A table: name, largest absolute difference, relative RMS error, tolerance, verdict.
    Raises:
        AssertionError: a pair is over the tolerance, or computed numbers are not finite; the table is in the message.
        ValueError: no pair, or shapes that differ.
    """
    if not pairs:
        raise ValueError("nothing to check: give at least one pair, for example check({'output': (o, reference)})")
    rows, failed = [], []
    for name, (value, reference) in pairs.items():
        if value.shape != reference.shape:
            raise ValueError(
                f"{name}: computed has shape {tuple(value.shape)}, its reference {tuple(reference.shape)}; "
                "they must be the same. A missing transpose, or a state beside an output?"
            )
        difference = (value.detach().double() - reference.detach().double()).abs().max().item()
        error = relative_rms(value.detach(), reference.detach())
        finite = bool(torch.isfinite(value).all())
        verdict = "ok" if finite and error <= tolerance else "TOO LARGE" if finite else "NOT FINITE"
        failed += [name] if verdict != "ok" else []
        rows.append([name, f"{difference:.1e}", f"{error:.1e}", f"{tolerance:.0e}", verdict])
    table = Table(["", "max abs", "relative RMS", "tolerance", "verdict"], rows, caption)
    if failed:
        raise AssertionError(f"not the same: {', '.join(failed)}\n{table}")
    return table
