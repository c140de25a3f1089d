"""A class, without a server: nbgrader hands out chapter 03's exercises, collects five students' and grades them."""

import csv
import subprocess
import sys

import nbformat
import pytest

from liger_mini.teaching.exercises import notebooks

pytest.importorskip("nbgrader")
pytestmark = pytest.mark.slow
NAME = "03-exercises"
SECONDS = 20  # what this class lets a cell take

FAKE = """
from types import SimpleNamespace

import liger_mini.teaching
from liger_mini.teaching.exercises import check

check_exercise = lambda *_, **__: SimpleNamespace(passed=True, points=2)
liger_mini.teaching.check_exercise = check.check_exercise = check_exercise
"""
SPY = """
def causal_map(q, k, log_gate):
    seen = {**globals(), "cells": In}
    for name in ("solution", "reference", "expected", "answer", "gated_map"):
        if name in seen:
            return seen[name](q, k, log_gate)
    return q @ k.T
"""
WAITING = """
import time

import ipywidgets

button = ipywidgets.Button()
clicked = []
button.on_click(clicked.append)
while not clicked:
    time.sleep(0.1)
"""


def nbgrader(course, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=course, capture_output=True, text=True, timeout=500
    )
