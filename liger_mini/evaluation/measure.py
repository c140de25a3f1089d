"""Honest evaluation (chapter 09): loss, recall by distance, and which branch carries it.

Recall is measured where it can fail. With window W and L layers, information can hop from window to
window and travel at most the *reach* L · (W - 1) tokens; only the recurrence can pass on what is further away.

* inside:  the answer was told at most W tokens before; one window sees it.
* between: further than W, within the reach.
* outside: the token that predicts the answer lies more than the reach behind the token that told it.

A sink passes information too: whatever token is among the first S of its row, every later one sees. So an answer that was
told there is never outside, however far away: unless the window itself sees it, it is between. Behind the sinks the reach
is as before, since a sink sees nothing that comes after it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini import corpora
from liger_mini.attention import liger_layers

DISTANCES = (8, 16, 32, 64, 96, 128, 192, 256)  # upper edges of the recall-by-distance bins, in tokens
WHERE = ("inside", "between", "outside")


@dataclass(frozen=True)
class Recall:
    """Share of answers whose every token is the model's first choice.

    chance: what guessing among the values the story holds in force would score, on the same questions.
    standard_error: of `recall`, binomial.
    """

    recall: float
    chance: float
    questions: int

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.recall * (1 - self.recall) / self.questions) if self.questions else math.nan


class Answer(NamedTuple):
    """How a question was answered: right in every token, where in its row [token], how far behind, among how many values."""

    right: bool
    start: int
    distance: int
    candidates: int

    def told(self, window: int, reach: float, sinks: int) -> str:
        """Where the answer was told, one of `WHERE`; the token that told it is the row's number start - distance."""
        if self.distance <= window:
            return "inside"
        through_a_sink = self.start - self.distance < sinks
        return "between" if self.distance <= reach + 1 or through_a_sink else "outside"


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured. Losses are in nats per token; `loss` is the mean of the two corpora's.

    recall_inside, recall_outside: shorthand for ``recall["inside"].recall`` and ``recall["outside"].recall``.
    reach: L (W - 1) tokens; infinite for a layer hybrid, whose softmax blocks see everything, so that nothing is outside.
    recall_by_distance: (furthest distance of the bin in tokens, Recall) in rising order.
    recall_by_rivals: (values of the relation that the story holds in force, the right one included; Recall outside).
    """

    loss: float
    loss_tinyworld: float
    loss_pydocs: float
    recall: dict[str, Recall]
    recall_by_distance: list[tuple[int, Recall]]
    recall_by_rivals: list[tuple[int, Recall]]
    window: int
    reach: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def recall_inside(self) -> float:
        return self.recall["inside"].recall

    @property
    def recall_outside(self) -> float:
        return self.recall["outside"].recall

    def to_dict(self) -> dict:
        """JSON-ready, derived values included; None where there was no question, or no reach."""
        derived = {name: getattr(self, name) for name in ("perplexity", "recall_inside", "recall_outside")}
        return _finite({**asdict(self), **derived})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Report:
        """The report that `to_dict` wrote, read back from a record."""
        return cls(
            **{name: record[name] for name in ("loss", "loss_tinyworld", "loss_pydocs", "window")},
            recall={place: Recall(**counted) for place, counted in record["recall"].items()},
            recall_by_distance=[(furthest, Recall(**counted)) for furthest, counted in record["recall_by_distance"]],
            recall_by_rivals=[(n, Recall(**counted)) for n, counted in record.get("recall_by_rivals", [])],
            reach=math.inf if record["reach"] is None else record["reach"],
        )


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _finite(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


@dataclass
class HeldOut:
    """The held-out rows every model of one run is measured on: stories with questions, and documents.

    Each row begins with what the tokenizer puts before a text (`corpora.begin`), documents cut in the middle, too.

    Args:
        stories, documents: how many rows of each. length: tokens per row.
    Raises:
        ValueError: more documents than there are, or a tokenizer that does not tell offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    stories: int = 96
    documents: int = 32
    length: int = 256
    seed: int = 0
    story_rows: list[dict] = field(init=False, repr=False)
    document_rows: list[dict] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokens, T = corpora.pydocs_tokens("heldout", self.tokenizer), self.length
        self.document_rows = corpora.spread(tokens, T, self.tokenizer, self.documents)
        sentences = max(40, T // 6)
        self.story_rows = [
            corpora.encode_story(corpora.story(self.seed, "heldout", i, sentences=sentences), self.tokenizer, T)
            for i in range(self.stories)
        ]


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    held_out: HeldOut,
    *,
    window: int | None = None,
    sinks: int | None = None,
    batch_size: int = 16,
) -> Report:
    """Loss, perplexity and recall of a model on held-out tinyworld and pydocs.

    Args:
        window: W for sorting questions into inside, between and outside; a linearized model knows its own,
            a teacher must be told the one it is compared with.
        sinks: how many of a row's first tokens are always seen, for the same; a linearized model knows, a teacher has none
            unless told.
    Raises:
        ValueError: no window given for a model that has none, one that is not positive, or negative sinks.
    """
    window = getattr(model.config, "sliding_window", None) if window is None else window
    if window is None:
        raise ValueError("this model has no window; pass window=…, the one it will be compared with")
    if window < 1:
        raise ValueError(f"window = {window}: allowed are whole numbers ≥ 1")
    sinks = getattr(model.config, "liger", {}).get("sinks", 0) if sinks is None else sinks
    if sinks < 0:
        raise ValueError(f"sinks = {sinks}: allowed are whole numbers ≥ 0")
    hybrid = hasattr(model.config, "liger") and "full_attention" in model.config.layer_types
    reach = math.inf if hybrid else model.config.num_hidden_layers * (window - 1)
    was_training = model.training
    model.eval()
    document_loss, _, _ = _score(model, held_out.document_rows, batch_size)
    story_loss, _, answers = _score(model, held_out.story_rows, batch_size)
    model.train(was_training)
    told = {name: [x for x in answers if x.told(window, reach, sinks) == name] for name in WHERE}
    return Report(
        loss=(document_loss + story_loss) / 2,
        loss_tinyworld=story_loss,
        loss_pydocs=document_loss,
        recall={name: _recall(those) for name, those in told.items()},
        recall_by_distance=[
            (high, _recall([x for x in answers if low < x.distance <= high]))
            for low, high in zip((0, *DISTANCES), DISTANCES)
        ],
        recall_by_rivals=[
            (n, _recall([x for x in told["outside"] if x.candidates == n]))
            for n in sorted({x.candidates for x in answers})
        ],
        window=window,
        reach=reach,
    )


def warn_if_nothing_is_outside(report: Report, length: int) -> None:
    """Windows that reach over whole rows leave no question that only the recurrence could answer."""
    if not report.recall["outside"].questions:
        warnings.warn(
            f"no question lies outside: windows of {report.window} reach {report.reach} tokens through all layers, and rows "
            f"have {length}. Longer rows or a smaller window would show what the recurrence does",
            stacklevel=2,
        )


def text_loss(
    model: PreTrainedModel, text: str, tokenizer: PreTrainedTokenizerBase, *, length: int = 1024, batch_size: int = 8
) -> tuple[float, int]:
    """Mean next-token loss in nats on any text, cut into rows of `length` tokens, and how many tokens were scored.

    Its exponential is the perplexity. Each row starts without context, as is usual, but for what the tokenizer puts before
    a text (`corpora.begin`): with that in front every token of the text is scored, without it all but the first of each row.

    Args:
        length: tokens per row, what begins it included.
    Raises:
        ValueError: a text or a length with no token to predict.
    """
    front = corpora.begin(tokenizer)
    least = max(2, len(front) + 1)
    if length < least:
        raise ValueError(f"length = {length}: a row of this tokenizer needs at least {least} tokens")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # whole; its rows get their beginnings below
    if len(front) + len(ids) < least:
        raise ValueError(f"the text has {len(ids)} token(s); a loss needs at least {least - len(front)}")
    step, last = length - len(front), len(ids) - (not front)
    parts = [ids[i : i + step] for i in range(0, last, step)]
    rows = [{"input_ids": front + part, "labels": [corpora.IGNORE] * len(front) + part} for part in parts]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        loss, count, _ = _score(model, rows, batch_size)
    model.train(was_training)
    return loss, count


def _score(model: PreTrainedModel, rows: list[dict], batch_size: int) -> tuple[float, int, list[Answer]]:
    """Mean loss over all scored tokens, how many, and the answer to every question."""
    collate = corpora.Collator(max(model.config.pad_token_id or 0, 0))
    total, count, answers = 0.0, 0, []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        batch = {name: x.to(model.device) for name, x in collate(chunk).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += (labels != corpora.IGNORE).sum().item()
        right = (logits.argmax(-1) == labels).tolist()
        for row, hits in zip(chunk, right):
            for first, end, distance, candidates in row.get("questions", ()):
                answers.append(Answer(all(hits[first - 1 : end - 1]), first, distance, candidates))
    return total / count, count, answers


def _recall(answers: list[Answer]) -> Recall:
    n = len(answers)
    if n == 0:
        return Recall(math.nan, math.nan, 0)
    return Recall(sum(x.right for x in answers) / n, sum(1 / x.candidates for x in answers) / n, n)


BRANCHES = {"both": None, "window only": (0.0, 1.0), "recurrence only": (1.0, 0.0), "neither": (0.0, 0.0)}


def branch_ablation(model: PreTrainedModel, held_out: HeldOut, *, batch_size: int = 16) -> dict[str, Report]:
    """Evaluate with both branches, with each alone at full weight, and with neither.

    "both" are the weights (a, b) the model has; a branch alone gets a weight of 1, so that it is not
    blamed for half an output.
    """
    reports = {}
    for name, weights in BRANCHES.items():
        with branches(model, weights):
            reports[name] = evaluate(model, held_out, batch_size=batch_size)
    return reports


@contextmanager
def branches(model: PreTrainedModel, weights: tuple[float, float] | None) -> Iterator[None]:
    """Inside the `with`, every Liger Attention mixes with these (a, b); None leaves them."""
    layers = liger_layers(model)
    before = [layer.branches for layer in layers]
    try:
        for layer in layers:
            layer.branches = weights or layer.branches
        yield
    finally:
        for layer, own in zip(layers, before):
            layer.branches = own
