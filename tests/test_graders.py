"""The graders are graded: every task lets right answers pass, names the mistakes it knows, and notices every mutant."""

import ast
import dataclasses
import importlib
import inspect
import math
import re
import sys
import time
import types
from importlib.util import find_spec

import pytest
import torch

from liger_mini.experiments import graders
from liger_mini.teaching import check_exercise, recorded
from liger_mini.teaching.exercises import check
from liger_mini.teaching.exercises.check import tasks
from liger_mini.teaching.exercises.grade import grade
from liger_mini.teaching.exercises.isolated import _threaded, usual_settings
from liger_mini.teaching.exercises.mutants import judge, mutants
from liger_mini.teaching.exercises.task import Draw, nothing

TASKS = tasks()
SEEDS = 20
every_task = pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=pytest.mark.skipif(not all(map(find_spec, task.needs)), reason=f"needs {task.needs}"))
        for task in TASKS.values()
    ],
    ids=TASKS,
)
FIXED = {
    "01.1": "step(q, k, v, state)",
    "02.1": "log_gate(k, temper)",
    "02.2": "half_life(log_gate)",
    "03.1": "gated_step(q, k, v, log_gate, state)",
    "03.2": "scalar_log_gate(k, temper)",
    "04.1": "within_chunk(q, k, v, log_gate)",
    "04.2": "next_state(state, k, v, log_gate)",
    "06.1": "window_mask(T, window)",
    "06.2": "window_and_sink_mask(T, window, sinks)",
    "07.1": "liger_output(recurrence, window, mix)",
    "08.1": "lora_change(A, B, alpha)",
    "09.1": "reach(layers, window)",
    "11.1": "delta_step(q, k, v, beta, log_gate, state)",
}


@pytest.fixture(autouse=True)
def in_a_fresh_world():
    with usual_settings():
        yield


def other_answers(task):
    return importlib.import_module(f"tests.other_answers.chapter{task.number[:2]}").ANSWERS[task.number]


def test_fixed_tasks_keep_their_signatures():
    assert {number: TASKS[number].signature for number in FIXED if number in TASKS} == {
        number: signature for number, signature in FIXED.items() if number in TASKS
    }


def test_every_message_is_said_by_one_mistake():
    messages = [mistake.message for task in TASKS.values() for mistake in task.mistakes]
    assert len(messages) == len(set(messages))


@every_task
def test_task_is_complete(task):
    assert len(task.mistakes) >= 4
    assert len([hint for hint in task.hints if hint]) == 3
    assert task.minutes > 0
    assert inspect.getdoc(task.reference)
    assert task.signature in task.statement
    for case in task.inputs(Draw(0)):
        assert tuple(case.args) == task.parameters
        assert set(task.gradients) <= set(case.args)


@every_task
def test_reference_stands_alone(task):
    """Its source is a notebook's solution: it may use torch and its like, and nothing else of its file."""
    function = inspect.unwrap(getattr(task.reference, "fn", task.reference))
    (tree,) = ast.parse(task.solution).body
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & function.__globals__.keys()
    used -= set(task.parameters)
    others = {name for name in used if not isinstance(function.__globals__[name], types.ModuleType)}
    assert others <= {task.name}


@every_task
def test_empty_stub_fails(task):
    def unwritten(*args):
        raise NotImplementedError

    for stub in (lambda *args: None, unwritten):
        verdict = grade(task, stub)
        assert not verdict.passed
        assert not verdict.mistake


@every_task
def test_right_answers_pass(task):
    answers = (task.reference, *other_answers(task))
    assert len(answers) >= 3
    for seed in range(SEEDS):
        for answer in answers:
            verdict = grade(task, answer, seed)
            assert verdict.passed, (seed, answer, verdict.message)


@every_task
def test_each_mistake_is_named(task):
    for mistake in task.mistakes:
        for seed in range(3):
            verdict = grade(task, mistake.answer, seed)
            assert not verdict.passed
            assert verdict.mistake == mistake.name, (mistake.name, seed, verdict.message)
            assert mistake.message in verdict.message
            assert mistake.section in verdict.message


@every_task
def test_every_mutant_is_killed_or_equal(task):
    judged = judge(task, SEEDS)
    print(f"{task.number}: {sum(one.killed for one in judged)} of {len(judged)} mutants killed")
    assert not [one.change for one in judged if one.differs]
    assert {one.change for one in judged if not one.killed} == set(task.survivors)


@every_task
def test_a_student_gets_full_marks_for_the_reference(task):
    report = check_exercise(task.number, task.reference)
    assert report.passed, report
    assert report.points == report.possible == task.points


def test_mutants_are_those_that_matter():
    source = '''
def f(x, n):
    """x -> x"""
    y = x.cumsum(0)[1:] - n
    y = y.T @ x[:, None]
    if n <= 2:
        y += 1
    return y, -x
'''
    changes = {mutant.change for mutant in mutants(source)}
    assert changes >= {
        "y = x.cumsum(0)[1:] - n → y = x.cumsum(0)[1:] + n",
        "y = x.cumsum(0)[1:] - n → y = (x.cumsum(0) - x)[1:] - n",
        "y = x.cumsum(0)[1:] - n → y = x.cumsum(0)[:] - n",
        "y = x.cumsum(0)[1:] - n → y = x.cumsum(0)[2:] - n",
        "y = x.cumsum(0)[1:] - n → y = x.cumsum(0)[1:]",
        "y = y.T @ x[:, None] → y = y @ x[:, None]",
        "y = y.T @ x[:, None] → y = y.T @ x[None, :]",
        "y = y.T @ x[:, None] → y = x[:, None] @ y.T",
        "y = y.T @ x[:, None] → pass",
        "if n <= 2: → if n < 2:",
        "y += 1 → y -= 1",
        "y += 1 → y += 0",
        "return (y, -x) → return (-x, y)",
        "return (y, -x) → return (y, x)",
    }


def endless(q, k, v, state):
    while True:
        pass


def deaf(q, k, v, state):
    while True:
        try:
            time.sleep(100)
        except BaseException:  # also what stops an endless loop
            state = state + 1


def loud(q, k, v, state):
    print("x" * 2_000_000)
    return TASKS["01.1"].reference(q, k, v, state)


def killed(q, k, v, state):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def asking(q, k, v, state):
    return input("your name? "), state


def two_lines(q, k, v, state):
    scores = q * 2
    return scores @ v, state


def in_place(q, k, v, state):
    q.mul_(1)
    o, new = TASKS["01.1"].reference(q, k, v, state)
    v.zero_()
    return o, new


def interrupting(q, k, v, state):
    raise KeyboardInterrupt


def unprintable(q, k, v, state):
    class Silent(Exception):
        def __str__(self):
            raise ValueError

    raise Silent


BAD = {
    "endless": (endless, "still running after .* line \\d+: `(pass|while True:)`"),
    "deaf": (deaf, "still running after"),
    "loud": (loud, "printed more than 1 MB"),
    "exits": (lambda q, k, v, state: sys.exit(3), "leaves the interpreter"),
    "killed": (killed, "ended the interpreter .SIGSEGV."),
    "interrupts": (interrupting, "KeyboardInterrupt, in line \\d+: `raise KeyboardInterrupt`"),
    "raises what cannot be printed": (unprintable, "Your code raises Silent.*in line \\d+: `raise Silent`"),
    "has no such operation": (
        lambda q, k, v, state: (q.long().softmax(-1), state),
        "NotImplementedError: .* not implemented for .Long.",
    ),
    "sparse": (lambda q, k, v, state: (v.to_sparse(), state), "o is a tensor of the layout torch.sparse_coo"),
    "nested": (lambda q, k, v, state: (torch.nested.nested_tensor([*v]), state), "o is a nested tensor"),
    "elsewhere": (
        lambda q, k, v, state: (v.to("meta"), state),
        "o is a tensor on the device meta; .* on the device cpu",
    ),
    "asks": (asking, "EOFError: input.. has nobody to ask.*line \\d+: `return input"),
    "crashes": (two_lines, "RuntimeError: .*in line \\d+: `return scores @ v, state`"),
    "returns None": (lambda q, k, v, state: None, "None. Did you forget `return`"),
    "returns None for the state": (lambda q, k, v, state: (v, None), "."),
    "returns NumPy": (lambda q, k, v, state: (v.numpy(), state), "o is a NumPy ndarray; expected is a PyTorch tensor"),
    "one result": (lambda q, k, v, state: v, r"expected are 2 results, \(o, state\)"),
    "another shape": (lambda q, k, v, state: (v[..., :1], state), r"o has shape \[2, 3, 1\]; expected is \[2, 3, 4\]"),
    "another type": (lambda q, k, v, state: (v.bool(), state), "o has dtype torch.bool; expected is torch.float32"),
    "not finite": (lambda q, k, v, state: (v * torch.nan, state), "not finite"),
    "twice the output": (lambda *x: (2 * TASKS["01.1"].reference(*x)[0], x[3]), "All values are 2 times the expected"),
    "changes its input": (in_place, "changes its argument v in place"),
    "too few parameters": (lambda q: q, r"TypeError.*It is called as step\(q, k, v, state\)"),
    "not a function": (torch.zeros(2), r"the function itself, step\(q, k, v, state\); a Tensor was given"),
    "nothing": (None, "the function itself"),
}


@pytest.mark.parametrize(("answer", "message"), BAD.values(), ids=BAD)
def test_bad_answers_are_told_so(answer, message, capfd):
    started = time.monotonic()
    report = check_exercise("01.1", answer)
    assert not report.passed
    assert report.points == 0
    assert re.search(message, report.message), report.message
    assert "Traceback" not in str(report)
    assert time.monotonic() - started < 60
    assert len(str(report)) < 4000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", ["99.1", 1.5, ["01.1"], endless])
def test_a_task_that_does_not_exist_lists_those_that_do(number):
    report = check_exercise(number, endless)
    assert not report.passed
    assert all(number in report.message for number in TASKS)


def positive_power(power):
    """Task 04.1 with a mask after the exponential, whatever this is called."""

    def within_chunk(q, k, v, log_gate):
        b = log_gate.cumsum(0)
        return (q @ k.T * power(b[:, None] - b).tril()) @ v

    return within_chunk


@pytest.mark.parametrize(
    "power",
    [
        torch.exp,
        lambda x: x.clone().exp_(),
        lambda x: torch.exp2(x / math.log(2)),
        lambda x: math.e**x,
        lambda x: torch.pow(torch.tensor(math.e), x),
        lambda x: torch.float_power(math.e, x).float(),
        lambda x: torch.expm1(x) + 1,
        lambda x: torch.vmap(torch.exp)(x),
    ],
)
def test_a_positive_exponent_is_seen_however_it_is_written(power):
    assert grade(TASKS["04.1"], positive_power(power)).mistake == "masked after exp only"
    assert grade(TASKS["04.1"], positive_power(lambda x: power(x.clamp(max=0)))).passed


def test_the_notebook_keeps_its_settings_and_its_functions():
    """A closure needs no pickle; what the notebook has set neither matters nor changes."""
    factor = 1.0
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        report = check_exercise("02.4", lambda k: factor * torch.nn.functional.logsigmoid(k))
        assert not torch.is_grad_enabled()
    assert report.passed, report
    assert torch.get_default_dtype() == torch.float64


def test_reports_show_themselves_and_escape_what_is_printed():
    def printing(q, k, v, state):
        print("<b>q</b>")

    report = check_exercise("01.1", printing)
    assert "&lt;b&gt;q&lt;/b&gt;" in report._repr_html_()
    assert "<b>q</b>" in repr(report)
    assert "0 of 1 points" in str(report)


def test_another_seed_gives_other_numbers():
    first, second = ([case.args["q"] for case in TASKS["01.1"].inputs(Draw(seed))] for seed in (0, 1))
    assert not torch.equal(first[0], second[0])


def test_where_nothing_can_be_forked_a_thread_does_it():
    """As on Windows and macOS."""

    def work():
        print("hello")
        return grade(TASKS["01.1"], TASKS["01.1"].reference)

    ended = _threaded(work, 5)
    assert ended.value.passed
    assert ended.printed == "hello\n"
    assert "printed more than 1 MB" in _threaded(lambda: print("x" * 2_000_000), 5).why
    assert "still running" in _threaded(lambda: endless(1, 1, 1, 1), 0.3).why
    assert "check itself failed" in _threaded(lambda: 1 / 0, 1).why


def half_life_of_096():
    """-> tokens (float)"""
    return math.log(0.5) / math.log(0.96)


def small_task(**changes):
    known = TASKS["02.2"]
    fields = {"number": "90.1", "reference": half_life_of_096, "inputs": nothing, "tolerance": 0.02, "mistakes": ()}
    return dataclasses.replace(known, **fields | changes)


def test_an_answer_may_be_a_value_where_there_is_nothing_to_call_with(monkeypatch):
    monkeypatch.setattr(check, "tasks", lambda: {"90.1": small_task()})
    for right in (17.0, 17, torch.tensor(16.98), half_life_of_096):
        assert check_exercise("90.1", right).passed
    for wrong, told in (
        (12.0, "Your answer is 12, which is not right"),
        ("17", "is a str; expected is"),
        (None, "None"),
    ):
        assert told in check_exercise("90.1", wrong).message


def test_a_task_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(check, "tasks", lambda: {"90.1": small_task(needs=("no_such_package",))})
    assert "needs no_such_package, which is not installed" in check_exercise("90.1", 17.0).message


def test_a_kernel_without_gpu_or_interpreter_says_what_to_set(monkeypatch):
    monkeypatch.setattr(check, "tasks", lambda: {"90.1": small_task(needs=("triton",))})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert 'os.environ["TRITON_INTERPRET"] = "1"' in check_exercise("90.1", 17.0).message
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert check_exercise("90.1", 17.0).passed


def test_the_record_is_of_these_tasks():
    """After a change of a task: python -m liger_mini graders --output data/results/graders.json"""
    there = {row["task"]: (row["title"], row["mistakes"]) for row in recorded("graders")["rows"]}
    assert there == {number: (task.title, len(task.mistakes)) for number, task in TASKS.items()}


def test_the_record_shows_a_hole():
    """With a tolerance this wide a mutant of the reference passes, and it differs."""
    row = graders.measure(small_task(tolerance=5.0))
    assert row["holes"]
    assert row["killed"] + len(row["holes"]) + len(row["equal"]) == row["mutants"]
    assert row["false_reds"] == 0
