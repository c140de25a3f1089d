"""Honest evaluation (chapter 09): loss, recall by distance, branch ablation, needles, lm-evaluation-harness."""

from liger_mini.evaluation.choices import Choices, ShortAnswers, choices, multiple_choice, short_answers
from liger_mini.evaluation.haystacks import needle
from liger_mini.evaluation.language import (
    Agreement,
    Difference,
    agreement,
    loss_by_position,
    loss_by_repeat,
    paired,
    remember,
    row_losses,
)
from liger_mini.evaluation.language_tasks import TASKS, Answers, questions, recall_by_generation
from liger_mini.evaluation.lm_harness import harness
from liger_mini.evaluation.look_back import look_back
from liger_mini.evaluation.measure import (
    HeldOut,
    Recall,
    Report,
    branch_ablation,
    branches,
    evaluate,
    text_loss,
)

__all__ = [
    "TASKS",
    "Agreement",
    "Answers",
    "Choices",
    "Difference",
    "HeldOut",
    "Recall",
    "Report",
    "ShortAnswers",
    "agreement",
    "branch_ablation",
    "branches",
    "choices",
    "evaluate",
    "harness",
    "look_back",
    "loss_by_position",
    "loss_by_repeat",
    "multiple_choice",
    "needle",
    "paired",
    "questions",
    "recall_by_generation",
    "remember",
    "row_losses",
    "short_answers",
    "text_loss",
]
