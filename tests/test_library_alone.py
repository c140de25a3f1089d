"""`pip install .` gives the library: it works where no package of the course, the harness or the tests is installed."""

import re
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# Every finder of modules and of distributions overlooks what is absent, so that nothing can tell it from not installed.
BLOCK = textwrap.dedent(
    """
    import re, sys

    imports, distributions = (set(names.split(",")) for names in sys.argv[1:])

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def __getattr__(self, name):
            return getattr(self.finder, name)

        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] in imports else self.finder.find_spec(name, path, target)

        def find_distributions(self, *context):
            find = getattr(self.finder, "find_distributions", lambda *_: ())
            return (d for d in find(*context) if re.sub("[-_.]+", "-", d.name).lower() not in distributions)

    sys.meta_path[:] = map(Without, sys.meta_path)
    """
)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements):
    """The requirements' distributions and everything that those require here."""
    found, waiting = set(), [Requirement(r) for r in requirements]
    while waiting:
        wanted = waiting.pop()
        key = (normal(wanted.name), *sorted(wanted.extras))
        if key in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(key)
        try:
            below = [Requirement(r) for r in requires(wanted.name) or ()]
        except PackageNotFoundError:  # a marker for another platform
            continue
        environments = [{"extra": extra} for extra in ("", *wanted.extras)]
        for r in below:
            if not r.marker or any(r.marker.evaluate(e) for e in environments):
                r.marker = None
                waiting.append(r)
    return {name for name, *_ in found}


def absent():
    """(import names, distributions) of what only the extras bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [r for extra in project["optional-dependencies"].values() for r in extra if not r.startswith("liger_mini")]
    # triton comes with torch's CUDA builds, and with the extras otherwise: the library takes it where it is
    library = closure(project["dependencies"]) | {"triton", "setuptools"}
    only = closure(extras) - library
    imports = {name for name, owners in packages_distributions().items() if {normal(o) for o in owners} <= only}
    return imports, only


def alone(code):
    imports, only = absent()
    assert {
        "datasets",
        "pyarrow",
        "pandas",
        "plotly",
        "IPython",
        "ipywidgets",
        "lm_eval",
        "pytest",
        "nbformat",
    } <= imports
    assert not {"torch", "transformers", "numpy", "tqdm", "huggingface_hub"} & imports
    command = [sys.executable, "-c", BLOCK + textwrap.dedent(code), ",".join(imports), ",".join(only)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_mathematics_and_linearize_need_nothing_but_the_library():
    out = alone(
        """
        import importlib.util
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        import liger_mini as lm

        x = torch.randn(1, 9, 2, 8)
        o, state = lm.gated_recurrence(x, x, x, -torch.rand(1, 9, 2, 8))
        assert o.shape == x.shape and state.shape == (1, 2, 8, 8)
        assert lm.sliding_window_attention(x, x, x, 4).shape == x.shape
        config = LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = lm.linearize(LlamaForCausalLM(config), window=4)
        assert model.generate(torch.arange(2, 12).unsqueeze(0), max_new_tokens=3, min_new_tokens=3).shape == (1, 13)
        if importlib.util.find_spec("triton"):
            import liger_mini.kernels.diagonal
        assert not imports & {name.partition(".")[0] for name in sys.modules}
        print("fine")
        """
    )
    assert out.endswith("fine\n")


def test_recovery_needs_nothing_but_the_library(tmp_path):
    code = """
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        import liger_mini as lm
        from liger_mini.recovery import Recipe

        config = LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
        ids = torch.randint(2, 97, (8, 12)).tolist()
        rows = [{"input_ids": row, "labels": row} for row in ids]
        model = lm.linearize(LlamaForCausalLM(config), window=4)
        result = lm.recover(model, rows, output_dir=OUT, recipe=Recipe(steps=2, batch_size=4), log_every=1)
        assert len(result.losses) == 2
    """
    alone(code.replace("OUT", repr(str(tmp_path / "run"))))


def test_every_command_says_what_it_does_where_only_the_library_is_installed(tmp_path):
    """And the library's own commands run: what a command needs from an extra it imports when it runs."""
    code = """
        import contextlib, io
        from liger_mini.commands import COMMANDS, main

        for name in COMMANDS:
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
                main([name, "--help"])
            assert name in said.getvalue(), name
        with contextlib.redirect_stderr(io.StringIO()) as said:
            assert main(["graders"]) == 2
        assert "No module named 'IPython'. What the course needs comes with pip install 'liger_mini[course]'" in said.getvalue()
        teacher = "data/teacher"
        assert main(["convert", "--model", teacher, "--window", "16", "--out", OUT]) == 0
        assert main(["recover", "--model", OUT, "--data", "pydocs", "--steps", "1", "--batch-size", "1", "--length", "64", "--out", OUT + "-run"]) == 0
    """
    alone(code.replace("OUT", repr(str(tmp_path / "linearized"))))
