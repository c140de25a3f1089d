"""The repository itself: notebooks without outputs, the layout others rely on, an install that works elsewhere."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from liger_mini.support.paths import write_atomically

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted([*(ROOT / "notebooks").rglob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            if "source" not in path.parts:  # of the exercises: a teacher's, with whole solutions
                assert len(cell.source.splitlines()) <= 15, cell.source
            assert not re.search(r"^\s*[!%].*install", cell.source, re.M)


def test_kernels_and_data_do_not_become_top_level_packages():
    assert not list((ROOT / "kernels").rglob("__init__.py"))
    assert not list((ROOT / "data").rglob("__init__.py"))


def function_lengths(path):
    """(name, lines without the docstring) of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            yield f"{path.name}: {node.name}", node.end_lineno - body[0].lineno + 1


LONGER = {"diagonal.py: _chunk_gradients"}  # a kernel: one loop, five gradients


def test_what_is_there_to_read_can_be_read_in_one_sitting():
    package, kernels = ROOT / "liger_mini", sorted((ROOT / "kernels").glob("*.py"))
    assert {path.stem for path in kernels} >= {"diagonal", "scalar", "slots", "window"}
    subject = sorted(package.glob("*.py"))
    assert len(subject) <= 8
    recurrences = [*(package / "recurrences").glob("*.py"), package / "window.py", package / "gates.py"]
    for limit, paths in ((90, [package / "minimal.py"]), (200, recurrences), (300, kernels)):
        for path in paths:
            assert len(path.read_text("utf-8").splitlines()) <= limit, path
    lengths = dict(pair for path in [*package.rglob("*.py"), *kernels] for pair in function_lengths(path))
    assert len(lengths) > 400
    assert {name for name, lines in lengths.items() if lines > 40} == LONGER


def test_no_module_at_the_root_has_the_name_of_a_public_function():
    import liger_mini as lm

    assert {path.stem for path in (ROOT / "liger_mini").glob("*.py")} & set(lm.__all__) == {"structures"}


def test_teacher_is_small_and_its_log_says_how_it_was_made():
    folder = ROOT / "data" / "teacher"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25_000_000
    log = json.loads((folder / "training_log.json").read_text())
    assert log["teacher"]["recall_outside"] >= 0.90
    assert log["trigram_loss_pydocs"] - log["teacher"]["loss_pydocs"] > 0.5
    assert {"date", "processor", "torch", "transformers"} <= set(log["provenance"])


def test_constraints_pin_what_pyproject_asks_for():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    asked = re.findall(r'^\s+"([a-z_-]+)[><=]', (ROOT / "pyproject.toml").read_text(), re.M)
    assert len(asked) > 8
    assert {name.replace("_", "-") for name in asked} <= {name.replace("_", "-") for name in pinned}
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.slow
def test_a_plain_install_works_from_another_folder(tmp_path):
    """`pip install .` without -e: the package, its kernels and its data, away from the clone."""
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        target,
        ROOT,
    ]
    subprocess.run(pip, check=True)
    code = """
import pathlib, sys
site = pathlib.Path(sys.argv[1])
import liger_mini, liger_mini.experiments
from liger_mini.support.paths import data_dir
assert site in pathlib.Path(liger_mini.__file__).parents, liger_mini.__file__
assert site in data_dir().parents, data_dir()
import importlib.util
kernel = importlib.util.find_spec("liger_mini.kernels.diagonal")
assert site in pathlib.Path(kernel.origin).parents, kernel.origin
model, tokenizer = liger_mini.experiments.load_teacher()
liger_mini.linearize(model, window=16)
ids = tokenizer("Ada lives in", return_tensors="pt").input_ids
assert model.generate(ids, max_new_tokens=3).shape == (1, ids.shape[1] + 3)
"""
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-c", code, target],
        cwd=tmp_path / "elsewhere",
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin"},
        check=True,
    )


@pytest.mark.parametrize("path", sorted((ROOT / "data").rglob("*.json")), ids=lambda path: path.name)
def test_recorded_json_can_be_read_by_any_program(path):
    """Python writes NaN, which is not JSON."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_writing_follows_links_and_refuses_folders(tmp_path):
    target, link = tmp_path / "results" / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    write_atomically(link, "1")
    write_atomically(link, "2")
    assert (target.read_text(), link.is_symlink()) == ("2", True)
    assert [path.name for path in target.parent.iterdir()] == ["target.json"]
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_atomically(target.parent, "3")


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="a system without /dev")
def test_writing_to_standard_output_writes_there(tmp_path):
    command = "from pathlib import Path; from liger_mini.support.paths import write_atomically as w; w(Path('/dev/stdout'), 'here')"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "here"
