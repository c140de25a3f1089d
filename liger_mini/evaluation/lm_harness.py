"""lm-evaluation-harness on a linearized model (chapter 09): the paper's six tasks, and one of ours that needs no network.

The harness loads models by itself and does not know ours, so the model is opened here and handed over.

    python -m liger_mini harness --model liger-1b --tasks piqa,arc_easy,arc_challenge,hellaswag,winogrande
    python -m liger_mini harness --model liger-1b --tasks mmlu --num-fewshot 5

What the paper reports for Llama-3.2-1B and for Liger-GLA 1B: PiQA 74.1, 75.0; ARC-e 65.4, 65.4; ARC-c 36.4, 35.7;
HellaSwag 63.8, 59.8; WinoGrande 60.0, 59.1; MMLU 31.0, 22.4. Read MMLU on its own: the average hides its fall.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.corpora.stories import RELATIONS, story

if TYPE_CHECKING:
    import datasets


PAPER_TASKS = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "mmlu")


def tinyworld_documents(questions: int = 100, seed: int = 0) -> datasets.DatasetDict:
    """Held-out stories, each cut before one answer: text, the 24 values to choose from, and the right one's number."""
    import datasets  # comes with the extras, not with the library

    rows: list[dict[str, Any]] = []
    index = 0
    while len(rows) < questions:
        tale = story(seed, "heldout", index)
        index += 1
        if not tale.questions:
            continue
        start, end = tale.questions[-1].answer
        answer = tale.text[start:end]
        values = next(values for *_, values in RELATIONS.values() if answer in values)
        rows.append({"text": tale.text[:start].rstrip(), "choices": values, "label": values.index(answer)})
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def tinyworld_task(questions: int = 100):
    """The task "tinyworld": choose the value that ends the story's last question; chance is 1/24."""
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(
        config={
            "task": "tinyworld",
            "custom_dataset": tinyworld_documents,
            "dataset_kwargs": {"questions": questions},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )


def harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = PAPER_TASKS,
    *,
    num_fewshot: int | None = None,
    batch_size: int | str = 8,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """The harness's own numbers, by task.

    Args:
        tasks: names the harness knows, downloaded from the hub; or "tinyworld", which is made here.
        batch_size: rows at a time, or "auto": as many as memory holds, at most 64; "auto:3" measures that three times,
            since the rows get shorter.
        limit: questions per task, for a quick look.
    Raises:
        ImportError: the harness is not installed. ValueError: a task it does not know, a limit or batch size below 1.
    """
    if not re.fullmatch(r"auto(:[1-9]\d*)?|[1-9]\d*", str(batch_size)):
        raise ValueError(f'batch_size = {batch_size!r}: allowed are whole numbers ≥ 1, "auto" and "auto:3"')
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit}: allowed are whole numbers ≥ 1, or None for every question")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError('lm-evaluation-harness is not installed; run pip install "liger_mini[harness]"') from error
    known = {"tinyworld", *TaskManager().all_tasks}
    if unknown := sorted(set(tasks) - known):
        raise ValueError(
            f"the harness has no task {', '.join(map(repr, unknown))}; `lm_eval ls tasks` lists what it has"
        )
    wanted = [tinyworld_task(limit or 100) if task == "tinyworld" else task for task in tasks]
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    results = lm_eval.simple_evaluate(
        model=wrapped, tasks=wanted, num_fewshot=num_fewshot, limit=limit, log_samples=False
    )
    return {
        task: {name: value for name, value in scores.items() if isinstance(value, (int, float))}
        for task, scores in results["results"].items()
    }
