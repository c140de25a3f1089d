"""Every Triton kernel compiles for GPUs and fits into their shared memory. No GPU needed: triton brings its compiler.

    python tests/test_kernels_compile.py    compiles every configuration, which takes minutes, and prints a table

A kernel is caught where it is launched, and compiled for the arguments at hand instead. So a new kernel needs a line
in `wrappers`, whatever its signature.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

KIB = {80: 163, 90: 227}  # shared memory a program can have on an A100 and an H100


def wrappers(x):
    """One call for every kernel file; what it returns is differentiated. x(*shape, dtype) makes an input."""
    from liger_mini.kernels import delta, diagonal, scalar, slots, tiles, window

    tiles.INTERPRETED = True  # now that all are imported as for a GPU: let tensors on the CPU in
    B, T, H, K, V, M, float32 = 1, 128, 2, 128, 128, 128, torch.float32
    q, k, v, state = x(B, T, H, K), x(B, T, H, K), x(B, T, H, V), x(B, H, K, V, dtype=float32)
    yield diagonal.triton_recurrence(q, k, v, x(B, T, H, K, dtype=float32), state)
    yield scalar.triton_recurrence(q, k, v, x(B, T, H, dtype=float32), state)
    yield scalar.triton_recurrence(x(B, T, H, K, dtype=float32), k, v, x(B, T, H, dtype=float32), state)  # mixed
    yield slots.triton_recurrence(q, k, v, x(B, T, H, M), x(B, T, H, M, dtype=float32), state, state)
    for gate in ((B, T, H), (B, T, H, K)):
        yield delta.triton_recurrence(q, k, v, x(B, T, H, dtype=float32), x(*gate, dtype=float32), state)
    yield window.triton_window(q, k, v, 64, sinks=4)
    q = x(B, T, 3 * H, K)  # three heads of queries share one of keys
    yield diagonal.triton_recurrence(q, k, v, x(B, T, H, K, dtype=float32), state)
    yield scalar.triton_recurrence(q, k, v, x(B, T, H, dtype=float32), state)
    for gate in ((B, T, H), (B, T, H, K)):
        yield delta.triton_recurrence(q, k, v, x(B, T, H, dtype=float32), x(*gate, dtype=float32), state)


class Driver:
    """What Triton asks of a GPU's driver before it compiles."""

    def get_current_device(self):
        return self.architecture  # kernels are kept by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)


def resources(kernel) -> tuple[float, int, int]:
    """KiB of shared memory; registers a thread, and the bytes it keeps in memory for want of more (spilled)."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
    registers, spilled = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return kernel.metadata.shared / 1024, int(registers), int(spilled)


def tiles_in_danger(kernel) -> list[str]:
    """Tiles that an asynchronous product may still read when others are copied over them; for GPUs from Hopper on.

    A wait lets the last few products of a loop go on ("pendings"). Meanwhile the tiles of a later turn arrive, in slots of their
    own: two slots are enough for the products of one turn. A tile that feeds an ordinary reduction too has one slot, and none
    of its products may still be running; gradients were silently wrong now and then.
    """
    lines = kernel.asm["ttgir"].splitlines()
    made = {found[1]: found[2] for line in lines if (found := re.match(r" *(%\w+)(?::\d+)? = (.*)", line))}
    indents = [len(line) - len(line.lstrip()) for line in lines]

    def slots(tile: str) -> int:
        how, source = re.match(r"\w+\.(\w+)(?: (%\w+))?", made[tile]).groups()
        if how == "local_alloc":
            return 1
        if how == "memdesc_index":
            return int(re.search(r"memdesc<(\d+)x", made[source]).group(1))
        return slots(source)  # the same tile, turned

    products, running = collections.defaultdict(list), collections.Counter()
    for number, line in enumerate(lines):
        loop = next((i for i in range(number - 1, -1, -1) if indents[i] < indents[number]), -1)
        if operands := re.search(r"warp_group_dot (%\w+), (%\w+), .*isAsync = true", line):
            in_memory = [tile for tile in operands.groups() if "memdesc" in made[tile].rpartition("->")[2]]
            products[loop].append(in_memory)  # others are registers, and no copy goes there
        elif pendings := re.search(r"warp_group_dot_wait.*pendings = (\d+)", line):
            running[loop] = max(running[loop], int(pendings[1]))
    return [
        tile
        for loop, tiles in products.items()
        for tile in itertools.chain(*tiles)
        if (slots(tile) - 1) * len(tiles) < running[loop]
    ]


def compile_all(cases: list[tuple[int, torch.dtype]], largest: bool):
    """Call the wrappers; where they launch, compile all configurations, or the one with the largest tiles."""
    from triton.runtime import JITFunction, driver
    from triton.runtime.autotuner import Autotuner

    compile_or_launch, done = JITFunction.run, set()

    def compile_instead(self, *args, grid, warmup, **options):
        kernel = compile_or_launch(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash in done:
            return
        done.add(kernel.hash)
        shared, registers, spilled = resources(kernel)
        name = f"{self.fn.__module__}.{self.fn.__name__}".removeprefix("liger_mini.kernels.")
        config = ", ".join(
            f"{key} = {value}" for key, value in options.items() if key in (*self.arg_names, "num_warps")
        )
        print(
            f"{name:26} {dtype!s:14} sm_{architecture}  {config:34} {shared:5.0f} KiB "
            f"{registers:4} registers {spilled:5} spilled",
            flush=True,
        )
        assert shared <= KIB[architecture], f"more than the {KIB[architecture]} KiB of shared memory there are"
        danger = tiles_in_danger(kernel)
        assert not danger, f"{danger}: a product is not waited for before its tiles are used again"

    def tune(self, *args, **options):
        self.nargs = dict(zip(self.arg_names, args))
        configs = sorted(self.prune_configs(options), key=lambda config: math.prod(config.kwargs.values()))
        for config in configs[-1:] if largest else configs:
            self.fn.run(*args, **options, **config.all_kwargs())

    JITFunction.run, Autotuner.run = compile_instead, tune
    driver.set_active(Driver())
    for architecture, dtype in cases:
        driver.active.architecture = architecture
        for results in wrappers(lambda *shape, dtype=dtype: torch.zeros(shape, dtype=dtype, requires_grad=True)):
            results = torch.utils._pytree.tree_leaves(results)
            torch.autograd.backward(results, [torch.zeros_like(x) for x in results])


@pytest.mark.slow
def test_every_kernel_compiles_and_fits():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, __file__, "--largest"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for kernel in ("diagonal._chunk_states", "scalar._chunk_states", "delta._correct", "window."):
        assert kernel in run.stdout, "the kernels were not caught"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--largest", action="store_true", help="only the largest tiles, and each dtype on one GPU")
    largest = parser.parse_args().largest
    once = [(80, torch.float32), (90, torch.bfloat16)]
    compile_all(once if largest else [*once, (80, torch.bfloat16), (90, torch.float32)], largest)
