"""Tasks of chapter 09: does the recurrence work?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def reach(layers, window):
    """layers; window in tokens, the query's own included -> tokens behind the query (int)"""
    return layers * (window - 1)


def reach_inputs(draw: Draw) -> Iterator[Case]:
    for layers, window in ((4, 16), (1, 64), (32, 64), (3, 1), (1, 1), (2, 2), (5, 5)):
        yield Case("", layers=layers, window=window)
    yield Case("", layers=draw.integer(6, 20), window=draw.integer(7, 40))


REACH = Task(
    number="09.1",
    title="How far stacked windows reach",
    minutes=5,
    difficulty="easy",
    statement="""\
A window of W lets a query see itself and the W - 1 tokens before it. In the next layer those tokens hold what *they* have seen, so
information hops from window to window. Write `reach(layers, window)`: how many tokens behind the query the farthest token is that can
still pass something on, as an int. Both arguments are at least 1. What is it for a window of 1?""",
    hints=(
        "One layer with a window of 2 reaches one token back.",
        "Each layer adds one hop, and each hop is as long as the one before.",
        "A hop has W - 1 tokens.",
    ),
    reference=reach,
    inputs=reach_inputs,
    section="chapter 09, section 2",
    mistakes=(
        Mistake(
            "hops of a whole window",
            lambda layers, window: layers * window,
            "Your hops are W tokens long. The window holds the query itself, so the farthest key is W - 1 tokens behind it.",
            "chapter 09, section 2",
        ),
        Mistake(
            "the tokens are counted",
            lambda layers, window: layers * (window - 1) + 1,
            "You counted all tokens that are seen, the query included. Asked is how far behind the query the last one is.",
            "chapter 09, section 2",
        ),
        Mistake(
            "one window",
            lambda layers, window: window - 1,
            "That is one layer's window. The layers are stacked: what a token has seen is passed on by the next layer.",
            "chapter 09, section 2",
        ),
        Mistake(
            "hops that multiply",
            lambda layers, window: (window - 1) ** layers,
            "Your reach grows as a power. A hop is as long in every layer, so the hops add up.",
            "chapter 09, section 2",
        ),
        Mistake(
            "a layer too few",
            lambda layers, window: (layers - 1) * (window - 1),
            "You have a hop too few: the first layer has a window, too, and hops like the others.",
            "chapter 09, section 2",
        ),
        Mistake(
            "one hop short at the end",
            lambda layers, window: layers * window - 1,
            "You took one token off at the end. It comes off every hop: each window holds its own query.",
            "chapter 09, section 2",
        ),
    ),
)


def place(distance, layers, window):
    """distance of an answer from what told it, in tokens, at least 1 -> "inside", "between" or "outside\""""
    if distance <= window:
        return "inside"
    return "between" if distance - 1 <= layers * (window - 1) else "outside"


def place_inputs(draw: Draw) -> Iterator[Case]:
    for layers, window in ((4, 16), (1, 8), (3, 2), (2, 1), (draw.integer(5, 9), draw.integer(6, 30))):
        far = layers * (window - 1)
        for distance in sorted(
            {1, window - 1, window, window + 1, far - 1, far, far + 1, far + 2, 3 * far + 9} - {0, -1}
        ):
            yield Case("", distance=distance, layers=layers, window=window)


PLACE = Task(
    number="09.2",
    title="Inside, between, outside",
    minutes=15,
    difficulty="medium",
    statement="""\
A question's answer stands at position i, and what told it ended at position i - d. The token that *predicts* the answer is the one before it,
at i - 1. Write `place(distance, layers, window)` for the distance d. The result is

* `"inside"` if a single window is enough: in one layer, the predicting token sees the token that told it;
* `"between"` if it needs more than one window, but stacked windows can bring it;
* `"outside"` if the token that told it lies farther behind the predicting token than all layers' windows reach (task 09.1).

A window of W holds the query and the W - 1 tokens before it.""",
    hints=(
        "From the predicting token it is d - 1 tokens back.",
        "One window reaches W - 1 tokens back: inside means d - 1 ≤ W - 1.",
        "All windows reach L (W - 1) tokens back: outside means d - 1 > L (W - 1).",
    ),
    reference=place,
    inputs=place_inputs,
    section="chapter 09, section 2",
    mistakes=(
        Mistake(
            "measured from the answer",
            lambda distance, layers, window: (
                "inside" if distance < window else "between" if distance <= layers * (window - 1) else "outside"
            ),
            "You measure from the answer itself. It is predicted one token earlier, so the way back is d - 1.",
            "chapter 09, section 2",
        ),
        Mistake(
            "outside a token early",
            lambda distance, layers, window: (
                "inside" if distance <= window else "between" if distance <= layers * (window - 1) else "outside"
            ),
            "Your outside begins a token early. The predicting token stands one before the answer: d - 1 is compared with the reach.",
            "chapter 09, section 2",
        ),
        Mistake(
            "inside a token short",
            lambda distance, layers, window: (
                "inside" if distance < window else "between" if distance - 1 <= layers * (window - 1) else "outside"
            ),
            "Your inside ends a token early. From the predicting token, d = W is W - 1 tokens back, and its window holds that.",
            "chapter 09, section 2",
        ),
        Mistake(
            "a window of W tokens before the query",
            lambda distance, layers, window: (
                "inside" if distance <= window + 1 else "between" if distance - 1 <= layers * window else "outside"
            ),
            "Your window has W tokens besides the query. It has W with the query, and reaches W - 1 back.",
            "chapter 09, section 2",
        ),
        Mistake(
            "hops of a whole window",
            lambda distance, layers, window: (
                "inside" if distance <= window else "between" if distance - 1 <= layers * window else "outside"
            ),
            "Your reach is L W. Each hop is W - 1 tokens, so some of your between is out of reach.",
            "chapter 09, section 2",
        ),
        Mistake(
            "no between",
            lambda distance, layers, window: "inside" if distance <= window else "outside",
            "What a single window does not see is not outside yet: stacked windows pass it on, up to L (W - 1) tokens.",
            "chapter 09, section 2",
        ),
        Mistake(
            "all layers are inside",
            lambda distance, layers, window: "inside" if distance - 1 <= layers * (window - 1) else "outside",
            "You call everything inside that stacked windows reach. Inside is what one window sees; the rest of the reach is between.",
            "chapter 09, section 2",
        ),
    ),
)


def carried_by(recalls, questions, chance):
    """recalls: {"both": ..., "window only": ..., "recurrence only": ...}, each in [0, 1] -> who brings the recall (str)"""
    both, window = recalls["both"], recalls["window only"]
    of_both, of_window = (r * (1 - r) / questions for r in (both, window))
    if both - window > 2 * math.sqrt(of_both + of_window):
        return "recurrence"
    return "window" if window - chance > 2 * math.sqrt(of_window) else "nobody"


def ablation_inputs(draw: Draw) -> Iterator[Case]:
    some, high = float(draw.uniform(low=0.6, high=0.95)), float(draw.uniform(low=0.75, high=0.95))
    for name, (both, window, recurrence, questions, chance) in {
        "a cure": (0.84, 0.06, 0.02, 230, 0.17),
        "another cure": (some, 0.05, 0.01, draw.integer(100, 900), 0.2),
        "a collapse, outside": (0.05, 0.04, 0.00, 230, 0.17),
        "a recurrence that speaks by itself": (0.62, 0.60, 0.58, 150, 0.2),
        "inside, where a window is enough": (0.97, 0.96, 0.05, 400, 0.2),
        "inside, the other way round": (high - 0.01, high, 0.3, draw.integer(100, 300), 0.2),
        "guessing": (0.25, 0.22, 0.23, 100, 0.2),
        "guessing, both alike": (0.24, 0.24, 0.04, 300, 0.2),
        "few questions": (0.50, 0.37, 0.10, 100, 0.1),
        "more questions": (0.50, 0.37, 0.10, 150, 0.1),
        "few questions, near chance": (0.34, 0.30, 0.10, 60, 0.2),
        "more questions, near chance": (0.32, 0.30, 0.02, 120, 0.2),
        "nothing at all, not even by chance": (0.0, 0.0, 0.0, 50, 0.0),
        "everything": (1.0, 1.0, 0.02, 50, 0.25),
        "both help": (0.9, 0.5, 0.04, 200, 0.2),
        "a recurrence that disturbs": (0.4, 0.8, 0.1, 200, 0.2),
    }.items():
        recalls = {"both": both, "window only": window, "recurrence only": recurrence}
        yield Case(name, recalls=recalls, questions=questions, chance=chance)


def carried_by_the_better_branch(recalls, questions, chance):
    return "recurrence" if recalls["recurrence only"] > recalls["window only"] else "window"


def carried_if_alone(recalls, questions, chance):
    for name in ("recurrence", "window"):
        r = recalls[f"{name} only"]
        if r - chance > 2 * math.sqrt(r * (1 - r) / questions):
            return name
    return "nobody"


def carried_without_errors(recalls, questions, chance):
    if recalls["both"] > recalls["window only"]:
        return "recurrence"
    return "window" if recalls["window only"] > chance else "nobody"


def carried_one_error(recalls, questions, chance):
    both, window = recalls["both"], recalls["window only"]
    of_both, of_window = (r * (1 - r) / questions for r in (both, window))
    if both - window > math.sqrt(of_both + of_window):
        return "recurrence"
    return "window" if window - chance > math.sqrt(of_window) else "nobody"


def carried_first_bar(recalls, questions, chance):
    both = recalls["both"]
    return "recurrence" if both - chance > 2 * math.sqrt(both * (1 - both) / questions) else "nobody"


def carried_without_chance(recalls, questions, chance):
    both, window = recalls["both"], recalls["window only"]
    of_both, of_window = (r * (1 - r) / questions for r in (both, window))
    if both - window > 2 * math.sqrt(of_both + of_window):
        return "recurrence"
    return "window" if window > 2 * math.sqrt(of_window) else "nobody"


def carried_error_of_both(recalls, questions, chance):
    both, window = recalls["both"], recalls["window only"]
    of_both, of_window = (r * (1 - r) / questions for r in (both, window))
    if both - window > 2 * math.sqrt(of_both):
        return "recurrence"
    return "window" if window - chance > 2 * math.sqrt(of_window) else "nobody"


CARRIED_BY = Task(
    number="09.3",
    title="Read a branch ablation",
    minutes=20,
    difficulty="medium",
    statement="""\
A branch ablation measures recall three times on the same kind of questions. Write `carried_by(recalls, questions, chance)`: `recalls` is a
dictionary with the entries `"both"`, `"window only"` and `"recurrence only"`, each a share of `questions` questions, and `chance` is what
guessing scores. The result is

* `"recurrence"` if taking the recurrence away costs recall: *both* is above *window only* by more than two standard errors of their difference;
* otherwise `"window"` if the window recalls something: *window only* is above chance by more than two standard errors of *window only*;
* otherwise `"nobody"`.

The variance of a recall r over n questions is r (1 - r) / n. The variance of a difference is the sum of the two variances, and a
standard error is the root of a variance. Then say which number of the table you did not need, and why.""",
    hints=(
        "A recurrence that was trained beside a window cannot speak without it. That says nothing about what it brings.",
        "So compare *both* with *window only*, and *window only* with chance.",
        "The first error is √(r₁(1 - r₁)/n + r₂(1 - r₂)/n), the second √(r₂(1 - r₂)/n).",
    ),
    reference=carried_by,
    inputs=ablation_inputs,
    section="chapter 09, section 4",
    mistakes=(
        Mistake(
            "the better of two branches",
            carried_by_the_better_branch,
            "You compare the two branches alone. The recurrence was trained beside a window and is no language model by itself: ask what "
            "is lost without it.",
            "chapter 09, section 4",
        ),
        Mistake(
            "the recurrence has to do it alone",
            carried_if_alone,
            "You ask what the recurrence recalls alone. It brings what both branches recall and the window alone does not.",
            "chapter 09, section 4",
        ),
        Mistake(
            "no errors",
            carried_without_errors,
            "You take every difference for real. Some are within two standard errors, which luck with the questions can make.",
            "chapter 09, section 4",
        ),
        Mistake(
            "one standard error",
            carried_one_error,
            "You ask for one standard error. Nearly a third of all differences that are none are larger than that; the rule here is two.",
            "chapter 09, section 4",
        ),
        Mistake(
            "the first bar alone",
            carried_first_bar,
            "You read *both* alone. Where it is high, the window may have brought it: compare it with *window only*.",
            "chapter 09, section 4",
        ),
        Mistake(
            "no chance",
            carried_without_chance,
            "You compare *window only* with zero. A guess among the story's values is right at times: compare with chance.",
            "chapter 09, section 4",
        ),
        Mistake(
            "the error of one number",
            carried_error_of_both,
            "You use the error of *both* for the difference. *window only* was measured as well: add the two variances.",
            "chapter 09, section 4",
        ),
    ),
)


def paired_difference(first, second):
    """first, second [n], bool: right or wrong, the same questions -> difference, standard_error, two numbers, []"""
    d = first.double() - second.double()
    return d.mean(), (d.var(correction=0) / len(d)).sqrt()


def paired_inputs(draw: Draw) -> Iterator[Case]:
    for name, n, right, agree in (
        ("mostly the same answers", 100, 0.8, 0.9),
        ("unrelated answers", 60, 0.6, 0.0),
        ("few questions", 12, 0.5, 0.5),
    ):
        first = draw.uniform(n) < right
        second = torch.where(draw.uniform(n) < agree, first, draw.uniform(n) < right - 0.3)
        first[:3], second[:3] = torch.tensor([True, False, True]), torch.tensor([False, True, False])
        yield Case(name, first=first, second=second)
    same = torch.arange(20) % 3 > 0
    yield Case("one answer differs", first=same, second=same | (torch.arange(20) == 6))
    yield Case("the second is better", first=torch.arange(30) < 9, second=torch.arange(30) < 16)


def paired_as_if_unpaired(first, second):
    p, q = first.double().mean(), second.double().mean()
    return p - q, ((p * (1 - p) + q * (1 - q)) / len(first)).sqrt()


def paired_of_the_difference(first, second):
    d = first.double().mean() - second.double().mean()
    return d, (d.abs() * (1 - d.abs()) / len(first)).sqrt()


def paired_one_model(first, second):
    p = first.double().mean()
    return p - second.double().mean(), (p * (1 - p) / len(first)).sqrt()


def paired_not_centred(first, second):
    d = first.double() - second.double()
    return d.mean(), d.square().mean().div(len(d)).sqrt()


def paired_spread(first, second):
    d = first.double() - second.double()
    return d.mean(), d.std(correction=0)


def paired_sample(first, second):
    d = first.double() - second.double()
    return d.mean(), d.std() / len(d) ** 0.5


def paired_turned(first, second):
    d, error = paired_difference(first, second)
    return -d, error


PAIRED_DIFFERENCE = Task(
    number="09.4",
    title="Two models, the same questions",
    minutes=15,
    difficulty="medium",
    statement="""\
Two models answer the same n questions. Where both are right, or both wrong, the question says nothing about which of them is better. So the
error of their difference is not that of two separate measurements. Let $d_i$ be 1 where only the first is right, -1 where only the
second is, and else 0. Then

$$\\bar d = \\frac1n \\sum_i d_i, \\qquad \\text{standard error} = \\sqrt{\\frac{1}{n}\\cdot\\frac1n \\sum_i (d_i - \\bar d)^2}$$

Write `paired_difference(first, second)`: both are truth values [n], True where the answer was right. Return the difference of the two
recalls, first minus second, and its standard error, as numbers. (With n below the line, and not n - 1, as the course has it everywhere.)""",
    hints=(
        "Truth values cannot be subtracted: `first.double()` makes them 0 and 1.",
        "The mean of d is the difference of the recalls.",
        "`d.var(correction=0)` divides by n. The variance of a mean is that divided by n once more.",
    ),
    reference=paired_difference,
    inputs=paired_inputs,
    returns=("difference", "standard_error"),
    tolerance=1e-4,
    section="chapter 09, section 4",
    mistakes=(
        Mistake(
            "as if other questions had been asked",
            paired_as_if_unpaired,
            "Your error is that of two measurements on different questions. These were the same, and where the two agree nothing is uncertain "
            "about which is better. Take the spread of d.",
            "chapter 09, section 4",
        ),
        Mistake(
            "a binomial error of the difference",
            paired_of_the_difference,
            "You put the difference into r (1 - r) / n. It is no share of right answers: d can be -1 as well.",
            "chapter 09, section 4",
        ),
        Mistake(
            "the error of one recall",
            paired_one_model,
            "Your error is that of the first recall. The difference has its own: the spread of d over the questions.",
            "chapter 09, section 4",
        ),
        Mistake(
            "the mean is not taken off",
            paired_not_centred,
            "You average d². The mean of d has to be taken off first: a difference that is the same everywhere has no error.",
            "chapter 09, section 4",
        ),
        Mistake(
            "the spread of one question",
            paired_spread,
            "That is the spread of d over questions. The error of their mean is smaller by √n.",
            "chapter 09, section 4",
        ),
        Mistake(
            "n - 1",
            paired_sample,
            "You divide by n - 1 (torch's own choice in `var` and `std`). The task has n: `correction=0`.",
            "chapter 09, section 4",
        ),
        Mistake(
            "second minus first",
            paired_turned,
            "Your sign is turned: the task wants the first minus the second.",
            "chapter 09, section 4",
        ),
    ),
)


def least_kept(teacher, student, chance):
    """teacher, student, chance: {task: percent}, the same tasks -> (task, share)"""
    kept = {task: (student[task] - chance[task]) / (teacher[task] - chance[task]) for task in teacher}
    worst = min(kept, key=kept.get)
    return worst, kept[worst]


def kept_inputs(draw: Draw) -> Iterator[Case]:
    tasks = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "mmlu")
    chance = dict(zip(tasks, (50.0, 25.0, 25.0, 25.0, 50.0, 25.0)))
    teacher = dict(zip(tasks, (74.1, 65.4, 36.4, 63.8, 60.0, 31.0)))
    liger = dict(zip(tasks, (75.0, 65.4, 35.7, 59.8, 59.1, 22.4)))
    yield Case("the paper's Llama-3.2-1B and Liger-GLA", teacher=teacher, student=liger, chance=chance)
    for name, scores in {
        "a task just above chance": {
            "copy": (52.0, 51.0, 50.0),
            "recall": (90.0, 60.0, 10.0),
            "short": (70.0, 62.0, 25.0),
        },
        "all better than the teacher": {
            "easy": (60.0, 66.0, 50.0),
            "far": (30.0, 33.0, 4.0),
            "near": (80.0, 88.0, 25.0),
        },
        "one kept least, another lost most": {
            "words": (99.0, 70.0, 4.0),
            "pairs": (60.0, 54.0, 50.0),
            "zeros": (20.0, 17.0, 0.0),
        },
    }.items():
        by_model = ({task: of[i] for task, of in scores.items()} for i in range(3))
        yield Case(name, **dict(zip(("teacher", "student", "chance"), by_model)))
    teacher = {task: chance[task] + float(draw.uniform(low=5, high=40)) for task in tasks}
    shares = {task: float(draw.uniform(low=0.8, high=1)) for task in tasks} | {"winogrande": 0.3}
    student = {task: chance[task] + shares[task] * (teacher[task] - chance[task]) for task in tasks}
    yield Case("", teacher=teacher, student=student, chance=chance)


def kept_with_chance(teacher, student, chance):
    kept = {task: student[task] / teacher[task] for task in teacher}
    return min(kept.items(), key=lambda item: item[1])


def kept_of_average(teacher, student, chance):
    task, _ = least_kept(teacher, student, chance)
    return task, (sum(student.values()) - sum(chance.values())) / (sum(teacher.values()) - sum(chance.values()))


def kept_in_points(teacher, student, chance):
    task = max(teacher, key=lambda task: teacher[task] - student[task])
    return task, (student[task] - chance[task]) / (teacher[task] - chance[task])


def kept_at_least_nothing(teacher, student, chance):
    task, share = least_kept(teacher, student, chance)
    return task, max(share, 0.0)


def kept_of_raw(teacher, student, chance):
    kept = {task: (student[task] - chance[task]) / teacher[task] for task in teacher}
    return min(kept.items(), key=lambda item: item[1])


def kept_lost(teacher, student, chance):
    task, share = least_kept(teacher, student, chance)
    return task, 1 - share


def kept_best(teacher, student, chance):
    kept = {task: (student[task] - chance[task]) / (teacher[task] - chance[task]) for task in teacher}
    return max(kept.items(), key=lambda item: item[1])


LEAST_KEPT = Task(
    number="09.5",
    title="Refute an average",
    minutes=15,
    difficulty="medium",
    statement="""\
"The linearized model keeps 96 % of its teacher's average. So no ability was lost." Find the task that refutes it. What a model *keeps* of a task
is its score above chance, as a share of the teacher's score above chance. It is negative for a model below chance.

Write `least_kept(teacher, student, chance)`: three dictionaries from the name of a task to percent. Return the task of which the least is kept,
and the share that is kept there, as a float (1.0 is all of it). The first case has the paper's numbers for Llama-3.2-1B.""",
    hints=(
        "A task with four answers gives 25 points away. Take them off the student's score and off the teacher's.",
        "Make a dictionary from task to (student - chance) / (teacher - chance).",
        "`min(kept, key=kept.get)` is the task.",
    ),
    reference=least_kept,
    inputs=kept_inputs,
    returns=("task", "share"),
    section="chapter 09, section 1",
    mistakes=(
        Mistake(
            "chance counts as kept",
            kept_with_chance,
            "You divide the scores as they are. Points that guessing brings are kept by any model: take chance off both scores.",
            "chapter 09, section 1",
        ),
        Mistake(
            "the average",
            kept_of_average,
            "Your task is right, but your share is that of the average, which hides this task among the others.",
            "chapter 09, section 1",
        ),
        Mistake(
            "the most points lost",
            kept_in_points,
            "You chose the task that lost the most points. A task with few points above chance can lose all of them and yet few.",
            "chapter 09, section 1",
        ),
        Mistake(
            "not below nothing",
            kept_at_least_nothing,
            "You cut the share off at 0. A model below chance is worse than guessing: its share is negative.",
            "chapter 09, section 1",
        ),
        Mistake(
            "chance of the student alone",
            kept_of_raw,
            "You took chance off the student's score only. The teacher has those points for nothing, too.",
            "chapter 09, section 1",
        ),
        Mistake(
            "the share that is lost",
            kept_lost,
            "That is the share that is lost. Asked is what is kept.",
            "chapter 09, section 1",
        ),
        Mistake(
            "the best task",
            kept_best,
            "You found the task of which the most is kept. One that keeps least refutes the claim.",
            "chapter 09, section 1",
        ),
    ),
)

TASKS = (REACH, PLACE, CARRIED_BY, PAIRED_DIFFERENCE, LEAST_KEPT)
