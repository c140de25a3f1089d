"""A release: the source archive and the wheel are built, and the wheel is used from another folder."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from liger_mini.support.version import __version__

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_archives_hold_the_package_and_the_wheel_works(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), clone], check=True)
    for kind in ("sdist", "wheel"):  # a process each: setuptools leaves its own words in sys.argv
        build = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, tmp_path], cwd=clone, check=True, capture_output=True)
    name = f"liger_mini-{__version__}"
    with tarfile.open(tmp_path / f"{name}.tar.gz") as sdist:
        files = sdist.getnames()
    assert {f"{name}/pyproject.toml", f"{name}/liger_mini/minimal.py", f"{name}/kernels/delta.py"} <= set(files)
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl") as wheel:
        assert "liger_mini/kernels/delta.py" in wheel.namelist()
        assert "liger_mini/data/results/demo-cpu.json" in wheel.namelist()
        assert "liger_mini/teaching/figures/figure.js" in wheel.namelist()
        wheel.extractall(tmp_path / "site")  # what pip does with a wheel of pure Python
    code = """
import sys, pathlib, liger_mini as lm
assert pathlib.Path(sys.argv[1]) in pathlib.Path(lm.__file__).parents, lm.__file__
from liger_mini.experiments import load_teacher
model, tokenizer = load_teacher()
lm.linearize(model, window=16)
print(model.generate(tokenizer("Ada lives in", return_tensors="pt").input_ids, max_new_tokens=3).shape)
"""
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "site"], cwd=tmp_path, env=environment, check=True)


def test_the_version_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = next(line for line in changes.splitlines() if line.startswith("## "))
    assert newest.startswith(f"## {__version__} (")
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dynamic"] == ["version"]
