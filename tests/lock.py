"""The lock: `constraints.txt`, one set of exact versions for every platform and Python that `pyproject.toml` allows.

python tests/lock.py              writes it; a pin stays while it can (with --upgrade: the newest of everything)
python tests/lock.py sizes        the megabytes each way to install downloads, as a table
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints.txt"
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "macOS 14 arm64": "aarch64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
}


def uv_compile(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`uv pip compile pyproject.toml` from the public index alone: no wheel folder, no other index, no user's settings."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--python", sys.executable]
    return subprocess.run(
        [*command, "--no-config", "--system-certs", "--quiet", "--no-annotate", *arguments],
        cwd=ROOT,
        env=ours | {"MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True,
        text=True,
    )


def write(output: Path, *arguments: str) -> None:
    """Write the lock; pins that `output` holds already stay where they can."""
    how = ("--universal", "--python-version", "3.11", "--all-extras", "--custom-compile-command", "make lock")
    done = uv_compile(*how, "--output-file", output, *arguments)
    if done.returncode:
        sys.exit(done.stderr)


def download(platform: str, extras: tuple[str, ...], python: str = "3.12") -> dict[str, float]:
    """Megabytes (10⁶ bytes) by package: its wheel on this platform, else its source."""
    chosen = [argument for extra in extras for argument in ("--extra", extra)]
    target = ("--python-platform", PLATFORMS[platform], "--python-version", python)
    done = uv_compile(*chosen, "--constraints", LOCK, *target, "--format", "pylock.toml")
    if done.returncode:
        sys.exit(done.stderr)
    packages = [p for p in tomllib.loads(done.stdout)["packages"] if "version" in p]
    return {p["name"]: max(w["size"] for w in p.get("wheels") or [p["sdist"]]) / 1e6 for p in packages}


def sizes(cpu_torch: float = 191.8) -> None:
    """Print the table; `cpu_torch` is the wheel of torch's CPU build for Linux x86-64, which the index does not list."""
    print("| platform | library | [course] | [dev] |\n|---|---|---|---|")
    for platform in PLATFORMS:
        routes = [download(platform, extras) for extras in ((), ("course",), ("dev",))]
        print("|", platform, *(f"| {sum(route.values()):,.0f}" for route in routes), "|")
        if platform == "Linux x86-64":
            cuda = ("nvidia-", "cuda-")
            routes = [{p: m for p, m in r.items() if not p.startswith(cuda)} | {"torch": cpu_torch} for r in routes]
            routes[0].pop("triton", None)  # the course asks for it by itself
            print("|", platform, "with TORCH=cpu", *(f"| {sum(route.values()):,.0f}" for route in routes), "|")


if __name__ == "__main__":
    if sys.argv[1:] == ["sizes"]:
        sizes()
    else:
        write(LOCK, *sys.argv[1:])
