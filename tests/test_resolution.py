"""Every platform and Python we name can install what `constraints.txt` pins, from the public index alone.

Metadata only, no wheel is downloaded; `pytest --index` runs it, and continuous integration does.
"""

import re
import shutil

import pytest

from .lock import LOCK, PLATFORMS, uv_compile, write

# published as source only, and pure Python: everything else must have a wheel, so that nobody needs a compiler
SOURCES = ("rouge-score", "sqlitedict", "word2number")
WHEELS = ("--only-binary", ":all:", *(argument for name in SOURCES for argument in ("--no-binary", name)))


@pytest.fixture(autouse=True)
def index(request):
    if not request.config.getoption("--index"):
        pytest.skip("asks the package index; run with --index")


def resolve(platform, python, lock=LOCK):
    target = ("--python-platform", PLATFORMS[platform], "--python-version", python)
    return uv_compile("--all-extras", "--no-header", "--constraints", lock, *target, *WHEELS)


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0", "3.14.0"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_lock_installs(platform, python):
    done = resolve(platform, python)
    assert done.returncode == 0, done.stderr
    resolved = set(done.stdout.split())
    assert len(resolved) > 200
    assert resolved <= {line.split(" ;")[0] for line in LOCK.read_text("utf-8").splitlines()}


def test_the_lock_is_what_the_command_writes(tmp_path):
    """Whoever changes `pyproject.toml` runs `make lock`."""
    shutil.copy(LOCK, tmp_path)
    write(tmp_path / LOCK.name)
    assert (tmp_path / LOCK.name).read_text("utf-8") == LOCK.read_text("utf-8")


def test_a_triton_that_torch_does_not_want_is_noticed(tmp_path):
    text, replaced = re.subn(r"^triton==\S+", "triton==3.9.0", LOCK.read_text("utf-8"), flags=re.M)
    assert replaced == 1
    assert "torch==2.13.0\n" in text
    (tmp_path / LOCK.name).write_text(text, "utf-8")
    done = resolve("Linux x86-64", "3.12.0", tmp_path / LOCK.name)
    assert done.returncode != 0
    assert "triton" in done.stderr
