"""Is what an answer returned what was expected? If not, in one sentence: what is there, and what should be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDINGS = 100  # rounding errors allowed: sums of up to some hundred products, in another order than the reference's


def difference(got: Any, wanted: Any, name: str, tolerance: float | None, returns: tuple[str, ...] = ()) -> str | None:
    """None if `got` is what is wanted, else what is wrong with it.

    Tensors may be float32 for float64 and the other way round, and lists may be tuples; shapes and everything else count.
    """
    if got is None and wanted is not None:
        return f"{name} is None. Did you forget `return`?"
    if isinstance(wanted, Tensor):
        return _tensor(got, wanted, name, tolerance)
    if isinstance(wanted, (tuple, list)):
        names = returns or tuple(f"{name}[{i}]" for i in range(len(wanted)))
        if not isinstance(got, (tuple, list)) or len(got) != len(wanted):
            return f"{name} is {kind(got)}; expected are {len(wanted)} results, ({', '.join(names)})."
        return _first(got, wanted, names, tolerance)
    if isinstance(wanted, dict):
        if not isinstance(got, dict) or set(got) != set(wanted):
            given = f"has the entries {sorted(map(str, got))}" if isinstance(got, dict) else f"is {kind(got)}"
            return f"{name} {given}; expected is a dict with {sorted(map(str, wanted))}."
        names = tuple(f"{name}[{key!r}]" for key in wanted)
        return _first([got[key] for key in wanted], list(wanted.values()), names, tolerance)
    return _plain(got, wanted, name, tolerance)


def _first(got: Any, wanted: Any, names: tuple[str, ...], tolerance: float | None) -> str | None:
    found = (difference(g, w, n, tolerance) for g, w, n in zip(got, wanted, names))
    return next((said for said in found if said), None)


def _plain(got: Any, wanted: Any, name: str, tolerance: float | None) -> str | None:
    """Numbers, words, truth values, None."""
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    number = isinstance(wanted, (int, float)) and not isinstance(wanted, bool)
    if number and isinstance(wanted, float) and isinstance(got, int) and not isinstance(got, bool):
        got = float(got)
    if type(got) is not type(wanted):
        expected = "None" if wanted is None else f"a value of type {type(wanted).__name__}"
        return f"{name} is {kind(got)}; expected is {expected}."
    if isinstance(wanted, float):
        allowed = (1e-6 if tolerance is None else tolerance) * (abs(wanted) or 1.0)
        right = got == wanted or abs(got - wanted) <= allowed or (got != got and wanted != wanted)
        return None if right else f"{name} is {got:.6g}, which is not right."
    return None if got == wanted else f"{name} is {got!r}, which is not right."


def kind(x: Any) -> str:
    """For a sentence: "a tensor of shape [2, 3]", "a list of 2"."""
    if isinstance(x, Tensor):
        return f"a tensor of shape {list(x.shape)}"
    if x is None or isinstance(x, bool):
        return str(x)
    if type(x).__module__ == "numpy":
        return f"a NumPy {type(x).__name__}"
    return f"a {type(x).__name__} of {len(x)}" if isinstance(x, (list, tuple)) else f"a {type(x).__name__}"


def _tensor(got: Any, wanted: Tensor, name: str, tolerance: float | None) -> str | None:
    if isinstance(got, (int, float)) and wanted.ndim == 0:
        got = torch.tensor(got, dtype=wanted.dtype if wanted.is_floating_point() else None)
    if not isinstance(got, Tensor):
        way_out = " Keep to torch's functions: NumPy's lose the gradient." if type(got).__module__ == "numpy" else ""
        return f"{name} is {kind(got)}; expected is a PyTorch tensor of shape {list(wanted.shape)}.{way_out}"
    if special := _special(got, wanted):
        return f"{name} is {special}; expected is an ordinary tensor on the device {wanted.device}."
    if got.shape != wanted.shape:
        return f"{name} has shape {list(got.shape)}; expected is {list(wanted.shape)}."
    precise = {torch.float32, torch.float64}
    if got.dtype != wanted.dtype and not {got.dtype, wanted.dtype} <= precise:
        return f"{name} has dtype {got.dtype}; expected is {wanted.dtype}."
    if not wanted.is_floating_point():
        return None if torch.equal(got, wanted) else _largest(got.double(), wanted.double(), name)
    odd = ~(got.isfinite() & wanted.isfinite())
    if bool((odd & (got != wanted) & ~(got.isnan() & wanted.isnan())).any()):
        return f"{name} has values that are not finite (NaN or inf) where finite ones are expected, or the other way round."
    if tolerance is None:
        tolerance = ROUNDINGS * max(torch.finfo(got.dtype).eps, torch.finfo(wanted.dtype).eps)
    got, wanted = got.detach().double().masked_fill(odd, 0), wanted.detach().double().masked_fill(odd, 0)
    if wanted.numel() == 0 or (got - wanted).abs().max() <= tolerance * (wanted.abs().max() or 1.0):
        return None
    return _largest(got, wanted, name)


def _special(got: Tensor, wanted: Tensor) -> str:
    """What keeps two tensors from being compared; empty if nothing does."""
    if got.is_nested or got.layout != wanted.layout:
        return "a nested tensor" if got.is_nested else f"a tensor of the layout {got.layout}"
    return f"a tensor on the device {got.device}" if got.device != wanted.device else ""


def _largest(got: Tensor, wanted: Tensor, name: str) -> str:
    """Where the error is largest, and whether it is only a factor."""
    error = (got - wanted).abs()
    at = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    place = f"at {at} it is {got[tuple(at)]:.4g}, and should be {wanted[tuple(at)]:.4g}"
    said = f"{name} has the right shape and wrong values: {place}, the largest error."
    factor = (got * wanted).sum() / wanted.square().sum().clamp(min=1e-300)
    if wanted.numel() > 1 and factor != 0 and (got - factor * wanted).abs().max() <= 1e-5 * got.abs().max():
        said += f" All values are {factor:.4g} times the expected ones."
    return said


def alike(got: Any, wrong: Any, tolerance: float | None) -> bool:
    """Whether two wrong results show the same mistake. Where both overflow, it does not matter in which places."""
    if isinstance(got, (tuple, list)) and isinstance(wrong, (tuple, list)) and len(got) == len(wrong):
        return all(alike(g, w, tolerance) for g, w in zip(got, wrong))
    tensors = isinstance(got, Tensor) and isinstance(wrong, Tensor) and not _special(got, wrong)
    if tensors and got.shape == wrong.shape and not got.isfinite().all() and not wrong.isfinite().all():
        return True
    return not difference(got, wrong, "", tolerance) and not difference(wrong, got, "", tolerance)
