"""Show the code that runs, never a copy of it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable

from IPython.display import Code


def source(function: Callable | type, *, docstring: bool = False) -> Code:
    """The source of a function or class of the package, without its docstring unless asked for.

    Raises:
        TypeError: something that has no Python source, such as a builtin.
    """
    while hasattr(function, "fn"):  # a Triton kernel inside its tuner
        function = function.fn
    try:
        text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    except (OSError, TypeError) as error:
        raise TypeError(f"{function!r} has no Python source to show") from error
    node = ast.parse(text).body[0]
    assert isinstance(node, (ast.FunctionDef, ast.ClassDef))
    if not docstring and ast.get_docstring(node) and len(node.body) > 1:
        lines = text.splitlines()
        text = "\n".join(lines[: node.body[0].lineno - 1] + lines[node.body[0].end_lineno :])
    return Code(text.rstrip(), language="python")
