"""What a recurrence or a window cannot take, said before it runs: what was given, and what is allowed."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from liger_mini.recurrences.documents import check_documents

WINDOW_BACKENDS = ("auto", "naive", "blocked", "chunked", "triton")


def check_inputs(q: Tensor, inputs: dict[str, Tensor], axes: dict[str, int] | None = None) -> None:
    """q [B, T, H, K]; the others [B, T, H_kv, ·] (or as many axes as `axes` says), H_kv the same and dividing H.

    Raises:
        ValueError: shapes that do not fit, an empty sequence. TypeError: inputs that are not floating point.
    """
    kv_heads = None
    for name, x in {"q": q, **inputs}.items():
        allowed = (axes or {}).get(name, 4)
        if x.ndim != allowed:
            wanted = {3: "three axes [B, T, H]", 4: "four axes [B, T, H, channels]"}[allowed]
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {wanted}")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; allowed are floating point types")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, but q is on {q.device}; move them to one device")
        if x.shape[:2] != q.shape[:2]:
            raise ValueError(f"{name} has [B, T] = {list(x.shape[:2])}, but q has {list(q.shape[:2])}")
        if name != "q":
            kv_heads = kv_heads or x.shape[2]
            if x.shape[2] != kv_heads:
                raise ValueError(f"{name} has {x.shape[2]} heads, but k has {kv_heads}; k, v and gates share theirs")
            if q.shape[2] % kv_heads:
                raise ValueError(f"the {kv_heads} heads of {name} do not divide the {q.shape[2]} heads of q")
    if q.shape[1] == 0:
        raise ValueError("empty sequence: T = 0, but a recurrence needs at least one token")


def check_width(name: str, x: Tensor, other: str, y: Tensor) -> None:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{name} has {x.shape[-1]} channels, but {other} has {y.shape[-1]}; they must be equal")


def check_gate(log_gate: Tensor) -> None:
    """log α ≤ 0 and not NaN; -inf (forget everything) is allowed."""
    if torch.compiler.is_compiling():  # reading a value would break the graph
        return
    largest = log_gate.detach().max().item()  # NaN wins over every number
    if largest != largest:
        raise ValueError(
            "log_gate has NaN: the keys it was read from are not finite. In a training, lower the learning rate and start "
            "from a checkpoint before"
        )
    if largest > 0:
        raise ValueError(
            f"log_gate has the value {largest:.4g}; a log-gate must be ≤ 0, since a gate is a factor in (0, 1]. "
            "Pass log α (for example torch.nn.functional.logsigmoid of the logits), not α itself"
        )


def check_delta(beta: Tensor, k: Tensor) -> None:
    """β in [0, 2], and β ‖k‖² ≤ 2: beyond that a correction overshoots, and the state grows without bound."""
    if torch.compiler.is_compiling():
        return
    smallest, largest = torch.stack(torch.aminmax(beta.detach())).tolist()
    if not 0 <= smallest <= largest <= 2:
        raise ValueError(f"beta has values from {smallest:.4g} to {largest:.4g}; allowed are 0 (writes nothing) to 2")
    step = (beta.detach() * k.detach().to(torch.promote_types(k.dtype, torch.float32)).square().sum(-1)).max().item()
    if not step <= 2 * (1 + 8 * torch.finfo(k.dtype).eps):
        raise ValueError(
            f"beta times the squared length of a key is {step:.4g}; allowed is up to 2, beyond which the state explodes. "
            "Normalise the keys: k / k.norm(dim=-1, keepdim=True)"
        )


def check_state(name: str, state: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} is a {type(state).__name__}; it must be a float32 tensor of shape {shape}")
    if state.shape != shape:
        raise ValueError(f"{name} has shape {tuple(state.shape)}; here it must be {shape}")
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {state.dtype}; a state is carried in float32 (float64 in float64 runs)")
    if state.device != q.device:
        raise ValueError(f"{name} is on {state.device}, but q is on {q.device}; move them to one device")


def check_window(
    q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int, key_mask: Tensor | None, backend: str
) -> None:
    """What `sliding_window_attention` says it takes.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"window = {window}: allowed are whole numbers ≥ 1 (the current key counts)")
    if not isinstance(sinks, int) or isinstance(sinks, bool) or sinks < 0:
        raise ValueError(f"sinks = {sinks!r}: allowed are whole numbers ≥ 0 (0 is the paper's)")
    if backend not in WINDOW_BACKENDS:
        raise ValueError(f"backend = {backend!r}: allowed are {', '.join(map(repr, WINDOW_BACKENDS))}")
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have four axes [B, T, heads, channels]")
    if q.shape[1] == 0:
        raise ValueError("empty sequence: T = 0, but attention needs at least one token")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"shapes do not fit: {shapes}; needed are q [B, Tq, H, K], k [B, Tk, Hkv, K], v [B, Tk, Hkv, V]"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"the {k.shape[2]} key/value heads do not divide the {q.shape[2]} query heads: {shapes}")
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"more queries than keys: {shapes}; the queries are the last Tq of the Tk positions")
    if key_mask is not None and key_mask.shape != k.shape[:2]:
        raise ValueError(f"key_mask has shape {tuple(key_mask.shape)}; with these keys it must be {tuple(k.shape[:2])}")


def check_packing(q: Tensor, k: Tensor, cu_seqlens: Tensor | None, documents: Tensor | None, backend: str) -> None:
    """Documents told in one way, and one that the window's form takes.

    Raises:
        ValueError: anything else.
    """
    if cu_seqlens is not None:
        check_documents(cu_seqlens, *k.shape[:2])
        if q.shape[1] != k.shape[1]:
            raise ValueError(
                f"cu_seqlens needs as many queries as keys; given are Tq = {q.shape[1]}, Tk = {k.shape[1]}"
            )
    if documents is not None and (cu_seqlens is not None or backend == "triton"):
        raise ValueError(
            "documents: allowed without cu_seqlens, and not with backend = 'triton', which takes cu_seqlens"
        )


def require_triton() -> None:
    """Say what is missing where `backend="triton"` cannot even be imported."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("backend = 'triton' needs the package triton, which this machine lacks: pip install triton")
