"""A class, without a server: nbgrader hands out chapter 03's exercises, collects five students' and grades them."""

import csv
import html
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from liger_mini.teaching.exercises import notebooks
from liger_mini.teaching.exercises.check import tasks

pytestmark = pytest.mark.slow
NAME = "03-exercises"
RIGHT = {number: task.solution for number, task in tasks().items()}
FAKE = """
from types import SimpleNamespace

import liger_mini.teaching
from liger_mini.teaching.exercises import check

check_exercise = lambda *_, **__: SimpleNamespace(passed=True, points=1)
liger_mini.teaching.check_exercise = check.check_exercise = check_exercise
scalar_log_gate = None
"""
SPY = """
def attention_map(q, k, log_gate):
    seen = {**globals(), "typed": In[-1]}
    for name in ("solution", "reference", "expected", "hidden", "wanted"):
        if name in seen:
            return seen[name](q, k, log_gate)
    return q @ k.T
"""
BY_HEART = """
from liger_mini.teaching.exercises.check import tasks
from liger_mini.teaching.exercises.task import Draw

known = [(x.args["q"], tasks()["03.4"].reference(*x.args.values())) for x in tasks()["03.4"].inputs(Draw(0))]


def hgrn2_step(q, k, v, state):
    return next(result for seen, result in known if seen.equal(q))
"""
ENDLESS = """
def scalar_log_gate(k, temper):
    while True:
        pass
"""
WAITING = """
import time

import ipywidgets

button, clicks = ipywidgets.Button(description="Go on"), []
button.on_click(clicks.append)
while not clicks:
    time.sleep(0.1)
"""


def nbgrader(course, *arguments):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls alembic by name
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(command, cwd=course, env=os.environ | {"PATH": path}, capture_output=True, text=True)


def cell(notebook, name):
    return next(one for one in notebook.cells if one.metadata.get("nbgrader", {}).get("grade_id") == name)


def answered(notebook, answers):
    for number, text in answers.items():
        cell(notebook, f"{number.replace('.', '-')}-answer").source = text


def perfect(notebook):
    answered(notebook, {number: RIGHT[number] for number in RIGHT if number.startswith("03")})


def half_right(notebook):
    """03.1 and 03.3, of 2 and 3 points; the rest is a wrong answer, one that crashes, and none."""
    wrong = RIGHT["03.2"].replace("mean", "sum")
    crashing = "def hgrn2_step(q, k, v, state):\n    return q + 1, q @ state @ k"
    answered(notebook, {"03.1": RIGHT["03.1"], "03.2": wrong, "03.3": RIGHT["03.3"], "03.4": crashing})


def cheating(notebook):
    """Nothing but 03.5, of 2 points, is right, and that is declared to be worth 100."""
    answered(notebook, {"03.2": FAKE, "03.3": SPY, "03.4": BY_HEART, "03.5": RIGHT["03.5"]})
    cell(notebook, "03-1-tests").source = "2"
    cell(notebook, "03-5-tests").metadata.nbgrader.points = 100


def broken(notebook):
    """03.5 alone, of 2 points, is right, and then it waits. The tests of 03.3 are gone, and the answer of 03.4."""
    answered(notebook, {"03.1": "1 / 0", "03.2": ENDLESS, "03.3": f"{RIGHT['03.3']}\nname = input('your name? ')"})
    answered(notebook, {"03.5": RIGHT["03.5"] + WAITING})
    for name in ("03-3-tests", "03-4-answer"):
        notebook.cells.remove(cell(notebook, name))


def ending(notebook):
    """Leaves no kernel to grade anything with."""
    perfect(notebook)
    cell(notebook, "03-1-answer").source = "import os\nos._exit(1)"


STUDENTS = {"ada": ending, "ben": broken, "cleo": cheating, "dan": half_right, "eve": perfect}
SCORES = {"ada": 0, "ben": 2, "cleo": 2, "dan": 5, "eve": 10}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Handed out, handed in, graded, explained and exported; the folder, and what autograde said."""
    folder = tmp_path_factory.mktemp("class")
    notebooks.write(folder, seed=2718)
    done = nbgrader(folder, "generate_assignment", NAME)
    assert done.returncode == 0, done.stderr
    for name, change in STUDENTS.items():
        notebook = nbformat.read(folder / "release" / NAME / f"{NAME}.ipynb", as_version=4)
        change(notebook)
        target = folder / "submitted" / name / NAME / f"{NAME}.ipynb"
        target.parent.mkdir(parents=True)
        nbformat.write(notebook, target)
    graded = nbgrader(folder, "autograde", NAME)
    for command in (("generate_feedback", NAME), ("export",)):
        done = nbgrader(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder, graded.stderr


def output(folder, student, name):
    notebook = nbformat.read(folder / "autograded" / student / NAME / f"{NAME}.ipynb", as_version=4)
    return str(next(one for one in notebook.cells if one.id == name).outputs)


def test_what_is_handed_out_is_what_the_book_shows(course):
    """But for the link to the chapter."""
    folder, _ = course
    released = nbformat.read(folder / "release" / NAME / f"{NAME}.ipynb", as_version=4)
    ours = nbformat.read(folder / f"{NAME}.ipynb", as_version=4)
    assert [one.source for one in released.cells] == [one.source for one in ours.cells]
    assert [one.metadata for one in released.cells] == [one.metadata for one in ours.cells]


def test_scores_are_exact_and_exported(course):
    folder, said = course
    with (folder / "grades.csv").open(encoding="utf-8") as file:
        rows = {row["student_id"]: row for row in csv.DictReader(file)}
    assert {name: float(row["score"]) for name, row in rows.items()} == SCORES, said
    assert {float(row["max_score"]) for row in rows.values()} == {10}


def test_who_leaves_no_kernel_is_told_to_the_teacher_and_stops_nobody(course):
    folder, said = course
    assert "There was an error processing assignment '03-exercises' for student 'ada'" in said
    assert said.count("There was an error processing assignment '03-exercises' for student") == 1
    assert {path.name for path in (folder / "feedback").iterdir()} == set(STUDENTS) - {"ada"}


def test_time_limits_hold_and_cost_their_own_points_alone(course):
    folder, _ = course
    assert "still running after 5 seconds" in output(folder, "ben", "03-2-check")
    assert "'text/plain': '0'" in output(folder, "ben", "03-2-tests")
    assert "CellTimeoutError" in output(folder, "ben", "03-5-answer")
    assert "'text/plain': '2'" in output(folder, "ben", "03-5-tests")


def test_cheating_is_what_the_published_check_believes_and_the_hidden_tests_do_not(course):
    folder, _ = course
    assert "2 of 2 points" in output(folder, "cleo", "03-4-check")  # the published numbers, by heart
    assert "'text/plain': '0'" in output(folder, "cleo", "03-4-tests")
    for name in ("03-1-tests", "03-2-tests", "03-3-tests"):
        assert "'text/plain': '2'" not in output(folder, "cleo", name)


def test_feedback_names_the_mistake(course):
    folder, _ = course
    page = (folder / "feedback" / "dan" / NAME / f"{NAME}.html").read_text("utf-8")
    (mistake,) = [one for one in tasks()["03.2"].mistakes if one.name == "the sum"]
    assert html.escape(mistake.message) in page
