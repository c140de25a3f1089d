"""The exercises' notebooks: written by the command alone, solvable, linked both ways, and without solutions on the site."""

import dataclasses
import linecache
import re
from pathlib import Path

import nbformat
import pytest

from liger_mini.commands import main
from liger_mini.teaching.exercises import notebooks
from liger_mini.teaching.exercises.check import check_exercise, tasks
from liger_mini.teaching.exercises.notebooks import chapters
from liger_mini.teaching.exercises.picture import picture
from liger_mini.teaching.figures.course import CHAPTERS, course_map

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks" / "exercises"
SECRET = re.compile("(BEGIN|END) (SOLUTION|HIDDEN TESTS)|seed = [1-9]")
every_chapter = pytest.mark.parametrize("chapter", chapters())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A class's folder with a seed of its own."""
    pytest.importorskip("triton", reason="it draws what a kernel gives")
    folder = tmp_path_factory.mktemp("class")
    assert main(["assignments", "--output", str(folder), "--seed", "2718"]) == 0
    return folder


def test_committed_notebooks_are_what_the_tasks_say(tmp_path):
    """After a change of a task: make assignments."""
    pytest.importorskip("triton", reason="it draws what a kernel gives")
    beside = tmp_path / "exercises"
    for chapter in chapters():
        (tmp_path / notebooks.chapter_file(chapter)).touch()
    notebooks.write(beside)
    there = {path.relative_to(FOLDER): path.read_text("utf-8") for path in FOLDER.rglob("*") if path.is_file()}
    there.pop(Path("README.md"))
    assert there == {path.relative_to(beside): path.read_text("utf-8") for path in beside.rglob("*") if path.is_file()}


def test_another_seed_changes_the_hidden_tests_alone(written):
    for chapter in chapters():
        name = f"{chapter}-exercises"
        path = Path("source") / name / f"{name}.ipynb"
        ours, theirs = ((folder / path).read_text("utf-8").splitlines() for folder in (FOLDER, written))
        changed = {(a.strip(), b.strip()) for a, b in zip(ours, theirs, strict=True) if a != b}
        assert changed == {('"seed = 1\\n",', '"seed = 2718\\n",')}


def test_away_from_the_course_nothing_is_linked(written):
    for path in written.rglob("*.ipynb"):
        assert "](../" not in path.read_text("utf-8")


@every_chapter
def test_students_get_no_solution_and_no_hidden_test(chapter):
    notebook = nbformat.read(FOLDER / f"{chapter}-exercises.ipynb", as_version=4)
    assert not [cell.source for cell in notebook.cells if SECRET.search(cell.source)]
    stubs = [cell.source for cell in notebook.cells if cell.id.endswith("-answer")]
    assert len(stubs) == len(chapters()[chapter])
    for stub in stubs:
        assert stub.endswith(f'"""\n    {notebooks.STUB}')


@every_chapter
def test_the_source_solves_itself(chapter):
    """Setup and solutions, run one after the other as in a notebook, earn every point."""
    names = {}
    for cell in notebooks.source(chapter).cells:
        if cell.id.endswith(("-setup", "-answer")):
            file = f"<{cell.id}>"
            linecache.cache[file] = (len(cell.source), None, cell.source.splitlines(True), file)  # Triton reads it
            exec(compile(cell.source, file, "exec"), names)
    for task in chapters()[chapter]:
        report = check_exercise(task.number, names[task.name], seed=notebooks.SEED)
        assert report.points == task.points, report


@every_chapter
def test_a_task_is_graded_by_a_locked_cell_of_its_points(chapter):
    cells = {cell.id: cell for cell in notebooks.source(chapter).cells}
    for task in chapters()[chapter]:
        name = task.number.replace(".", "-")
        tests = cells[f"{name}-tests"].metadata.nbgrader
        assert (tests.grade, tests.locked, tests.points) == (True, True, task.points)
        assert cells[f"{name}-answer"].metadata.nbgrader.solution
        assert cells[f"{name}-statement"].source.count("<details>") == 3
        assert ("data:image/svg+xml" in cells[f"{name}-statement"].source) == task.picture


@every_chapter
def test_chapter_and_exercises_link_each_other(chapter):
    there = notebooks.chapter_file(chapter)
    last = nbformat.read(ROOT / "notebooks" / there, as_version=4).cells
    assert any(
        f"(exercises/{chapter}-exercises.ipynb)" in cell.source for cell in last if "## Exercises" in cell.source
    )
    first = nbformat.read(FOLDER / f"{chapter}-exercises.ipynb", as_version=4).cells[0]
    assert f"(../{there})" in first.source


@every_chapter
def test_sections_to_read_again_are_there(chapter):
    """Those that a task names, and those that its messages do; a message may send to another chapter."""
    named = [task.section for task in chapters()[chapter]]
    named += [mistake.section for task in chapters()[chapter] for mistake in task.mistakes]
    for words in set(named):
        other, sections = re.fullmatch(r"chapter (\d\d), sections? ([\d and]+)", words).groups()
        text = (ROOT / "notebooks" / notebooks.chapter_file(other)).read_text("utf-8")
        for section in sections.split(" and "):
            assert f'"## {section} · ' in text, words


def test_the_map_of_the_course_counts_the_tasks():
    told = dict(zip(CHAPTERS, course_map().data[0].hovertext))
    assert {n: int(words.split()[-3]) for n, words in told.items()} == {n: len(chapters().get(n, [])) for n in CHAPTERS}


def test_a_drawing_needs_a_matrix():
    with pytest.raises(ValueError, match=r"task 01\.1 has picture=True"):
        picture(dataclasses.replace(tasks()["01.1"], picture=True))
