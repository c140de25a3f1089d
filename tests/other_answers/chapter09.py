"""Right answers to chapter 09's tasks that are not the reference: two for each."""

import math
import statistics

import torch

from liger_mini.evaluation import Recall


def reach_by_walking(layers, window):
    """Follow the oldest key from layer to layer."""
    position = start = layers * window
    for _ in range(layers):
        position = min(range(position - window + 1, position + 1))
    return start - position


def reach_by_layers(layers, window):
    return 0 if layers == 0 else window - 1 + reach_by_layers(layers - 1, window)


def place_by_hops(distance, layers, window):
    """How many windows it takes; none is enough where a window holds nothing but the query."""
    back = distance - 1
    if back < window:
        return "inside"
    hops = math.inf if window == 1 else math.ceil(back / (window - 1))
    return "outside" if hops > layers else "between"


def place_by_edges(distance, layers, window):
    edges = {"inside": window + 1, "between": layers * (window - 1) + 2}
    return next((name for name, edge in edges.items() if distance < edge), "outside")


def carried_by_records(recalls, questions, chance):
    both, window = (Recall(recalls[name], chance, questions) for name in ("both", "window only"))
    if both.recall - window.recall > 2 * math.hypot(both.standard_error, window.standard_error):
        return "recurrence"
    return "window" if window.recall > chance + 2 * window.standard_error else "nobody"


def carried_by_squares(recalls, questions, chance):
    r = torch.tensor([recalls["both"], recalls["window only"]], dtype=torch.float64)
    variance = r * (1 - r) / questions
    difference, above = float(r[0] - r[1]), float(r[1]) - chance
    if difference > 0 and difference**2 > 4 * float(variance.sum()):
        return "recurrence"
    return ["nobody", "window"][above > 0 and above**2 > 4 * float(variance[1])]


def paired_by_counts(first, second):
    """McNemar's: only the questions on which they differ count."""
    n = len(first)
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    return (gained - lost) / n, math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n


def paired_by_lists(first, second):
    d = [int(a) - int(b) for a, b in zip(first.tolist(), second.tolist())]
    return [sum(d) / len(d), statistics.pstdev(d) / len(d) ** 0.5]


def least_kept_loop(teacher, student, chance):
    worst, least = None, math.inf
    for task, score in teacher.items():
        share = (student[task] - chance[task]) / (score - chance[task])
        if share < least:
            worst, least = task, share
    return worst, least


def least_kept_sorted(teacher, student, chance):
    above = [{task: scores[task] - chance[task] for task in scores} for scores in (teacher, student)]
    share, task = sorted((above[1][task] / above[0][task], task) for task in teacher)[0]
    return task, torch.tensor(share, dtype=torch.float64)


ANSWERS = {
    "09.1": (reach_by_walking, reach_by_layers),
    "09.2": (place_by_hops, place_by_edges),
    "09.3": (carried_by_records, carried_by_squares),
    "09.4": (paired_by_counts, paired_by_lists),
    "09.5": (least_kept_loop, least_kept_sorted),
}
