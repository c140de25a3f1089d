"""Tasks of chapter 12: a language model you know."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def first_token_share(weights, start):
    """weights [layers, H, T, T], rows are queries; start a number below T -> [layers]"""
    return weights[:, :, start:, 0].mean((1, 2))


def share_inputs(draw: Draw) -> Iterator[Case]:
    for layers, H, T, start in ((3, 2, 7, 3), (1, 4, 5, 0), (2, 3, 6, 5), (4, 4, 4, 2), (2, 1, 9, draw.integer(1, 7))):
        scores = draw.normal(layers, H, T, T, scale=2).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        yield Case("", weights=scores.softmax(-1), start=start)


FIRST_TOKEN_SHARE = Task(
    number="12.1",
    title="Who gets the attention?",
    minutes=5,
    difficulty="easy",
    statement="""\
`weights` is [layers, H, T, T]: in each layer and head a row for each query, a column for each key. Each row sums to 1. How much of the attention
goes to the first token of the text?

Write `first_token_share(weights, start)`: for each layer, the mean over heads and over the queries from token `start` on. (Early queries see
few tokens, so they give the first one much whatever the model is like.) The result is [layers].""",
    hints=(
        "Queries are rows, axis 2; keys are columns, axis 3.",
        "`weights[:, :, start:, 0]` is [layers, H, T - start].",
        "Take its mean over axes 1 and 2.",
    ),
    reference=first_token_share,
    inputs=share_inputs,
    section="chapter 12, section 2",
    mistakes=(
        Mistake(
            "queries and keys exchanged",
            lambda weights, start: weights[:, :, 0, start:].mean((1, 2)),
            "You read the first query's row. Asked is the first key's column: what all the others give to it.",
            "chapter 12, section 2",
        ),
        Mistake(
            "all queries",
            lambda weights, start: weights[:, :, :, 0].mean((1, 2)),
            "You count every query. The first ones see hardly any other token, so that the mean says little; begin at `start`.",
            "chapter 12, section 2",
        ),
        Mistake(
            "one query too late",
            lambda weights, start: weights[:, :, start + 1 :, 0].mean((1, 2)),
            "You leave out the query `start` itself.",
            "chapter 12, section 2",
        ),
        Mistake(
            "one number for all layers",
            lambda weights, start: weights[:, :, start:, 0].mean(),
            "You take the mean over layers as well. They differ from almost nothing to more than two thirds, so keep them apart.",
            "chapter 12, section 2",
        ),
        Mistake(
            "a sum over heads",
            lambda weights, start: weights[:, :, start:, 0].mean(2).sum(1),
            "You add up the heads. A share cannot be more than 1; take their mean.",
            "chapter 12, section 2",
        ),
        Mistake(
            "the strongest head",
            lambda weights, start: weights[:, :, start:, 0].mean(2).amax(1),
            "You report the head that gives most. Asked is the mean over heads.",
            "chapter 12, section 2",
        ),
        Mistake(
            "the token itself",
            lambda weights, start: weights.diagonal(dim1=2, dim2=3)[..., start:].mean((1, 2)),
            "You measure what each token gives to itself. Asked is what it gives to token 0.",
            "chapter 12, section 2",
        ),
    ),
)


def kl_from_teacher(teacher, student):
    """logits [T, vocabulary] of both -> a number (0-d tensor), nats per token"""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def kl_inputs(draw: Draw) -> Iterator[Case]:
    for T, vocabulary, scale in ((5, 7, 1), (1, 3, 2), (8, 4, 3), (3, 50, 1)):
        logits = [draw.normal(T, vocabulary, scale=scale, dtype=torch.float64) for _ in range(2)]
        yield Case("", teacher=logits[0], student=logits[1])
    extreme = [draw.normal(4, 6, scale=300, dtype=torch.float64) for _ in range(2)]
    yield Case("logits of some hundreds", teacher=extreme[0], student=extreme[1])


KL_FROM_TEACHER = Task(
    number="12.2",
    title="How far from the teacher?",
    minutes=10,
    difficulty="medium",
    statement="""\
A loss asks how well a model predicts a text. Agreement asks whether it says what its teacher says:

$$\\mathrm{KL}(p \\,\\|\\, q) = \\sum_w p_w \\,(\\log p_w - \\log q_w)$$

with the teacher's probabilities p and the student's q over the vocabulary. Write `kl_from_teacher(teacher, student)`: both are logits
[T, vocabulary]. The result is the mean over the T positions, in nats. Logits may be some hundreds apart.""",
    hints=(
        "`log_softmax` gives log p without forming p first, so nothing becomes log 0.",
        "p = exp(log p). The sum goes over the vocabulary, the mean over positions.",
        "`(p.exp() * (p - q)).sum(-1).mean()` with p and q as logarithms.",
    ),
    reference=kl_from_teacher,
    inputs=kl_inputs,
    tolerance=1e-9,  # two sums that nearly cancel may be taken one after the other
    section="chapter 12, section 3",
    mistakes=(
        Mistake(
            "the other direction",
            lambda teacher, student: kl_from_teacher(student, teacher),
            "You have KL(student ‖ teacher). The teacher's probabilities weigh the difference: what it finds likely counts.",
            "chapter 12, section 3",
        ),
        Mistake(
            "cross-entropy",
            lambda teacher, student: -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean(),
            "That is the cross-entropy. The teacher's own entropy is still in it, so a student that agrees exactly does not get 0.",
            "chapter 12, section 3",
        ),
        Mistake(
            "summed over positions",
            lambda teacher, student: kl_from_teacher(teacher, student) * len(teacher),
            "You add up the positions, so a longer text looks further from the teacher. Take their mean.",
            "chapter 12, section 3",
        ),
        Mistake(
            "mean over the vocabulary",
            lambda teacher, student: kl_from_teacher(teacher, student) / teacher.shape[-1],
            "You take the mean over the vocabulary. KL is a sum over it: an expectation under p already weighs the words.",
            "chapter 12, section 3",
        ),
        Mistake(
            "along positions",
            lambda teacher, student: kl_from_teacher(teacher.T, student.T),
            "Your softmax runs over positions. It runs over the vocabulary, the last axis.",
            "chapter 12, section 3",
        ),
        Mistake(
            "log of a softmax",
            lambda teacher, student: (
                (teacher.softmax(-1) * (teacher.softmax(-1).log() - student.softmax(-1).log())).sum(-1).mean()
            ),
            "You take the logarithm of a softmax. Where logits are hundreds apart a probability becomes 0 and its logarithm -inf. "
            "`log_softmax` does not.",
            "chapter 12, section 3",
        ),
        Mistake(
            "bits",
            lambda teacher, student: kl_from_teacher(teacher, student) / torch.tensor(2.0, dtype=torch.float64).log(),
            "Your result is in bits. The losses of this course are in nats, natural logarithms.",
            "chapter 12, section 3",
        ),
    ),
)


def paired_difference(a, b):
    """losses [N] of two models on the same rows -> (mean of a - b, its standard error), 0-d tensors"""
    d = a - b
    return d.mean(), d.std() / len(d) ** 0.5


def paired_inputs(draw: Draw) -> Iterator[Case]:
    for N, noise in ((12, 0.05), (4, 0.3), (2, 0.1), (40, 0.02)):
        rows = 2.5 + draw.normal(N, scale=0.6, dtype=torch.float64)
        shift = float(draw.uniform(low=-0.2, high=0.2))
        yield Case("", a=rows + shift + draw.normal(N, scale=noise, dtype=torch.float64), b=rows)


PAIRED_DIFFERENCE = Task(
    number="12.3",
    title="The same rows",
    minutes=10,
    difficulty="medium",
    statement="""\
Two models read the same N rows of text. Some rows are easy for both, some are hard for both, and that spread has nothing to do with the models.
So the difference is taken row by row, and its standard error is that of the *differences*: their sample standard deviation (with N - 1) over √N.

Write `paired_difference(a, b)`: `a` and `b` are the losses [N] of the two models, in the same order. Return `(mean, error)` of a - b.""",
    hints=(
        "First d = a - b. After that you need d alone.",
        "`Tensor.std()` divides by N - 1, which is right for a sample.",
        "`d.mean(), d.std() / len(d) ** 0.5`.",
    ),
    reference=paired_difference,
    inputs=paired_inputs,
    returns=("mean", "error"),
    section="chapter 12, section 3",
    mistakes=(
        Mistake(
            "unpaired",
            lambda a, b: (a.mean() - b.mean(), ((a.var() + b.var()) / len(a)) ** 0.5),
            "Your error is that of two unrelated samples. The rows are the same: what makes one hard for both cancels in a - b, and an "
            "error that keeps it hides the difference.",
            "chapter 12, section 3",
        ),
        Mistake(
            "the deviation",
            lambda a, b: ((a - b).mean(), (a - b).std()),
            "You return the spread of single rows. The error of their mean is smaller by √N.",
            "chapter 12, section 3",
        ),
        Mistake(
            "divided by N",
            lambda a, b: ((a - b).mean(), (a - b).std() / len(a)),
            "You divide the deviation by N. Errors of a mean fall with √N.",
            "chapter 12, section 3",
        ),
        Mistake(
            "the whole population",
            lambda a, b: ((a - b).mean(), (a - b).std(correction=0) / len(a) ** 0.5),
            "Your deviation divides by N, as if these rows were all there are. They are a sample, and its mean was estimated from it: N - 1.",
            "chapter 12, section 3",
        ),
        Mistake(
            "b - a",
            lambda a, b: ((b - a).mean(), (a - b).std() / len(a) ** 0.5),
            "Your mean has the wrong sign: it is b - a.",
            "chapter 12, section 3",
        ),
        Mistake(
            "variance",
            lambda a, b: ((a - b).mean(), (a - b).var() / len(a)),
            "You return the variance of the mean. The standard error is its square root.",
            "chapter 12, section 3",
        ),
        Mistake(
            "absolute differences",
            lambda a, b: ((a - b).abs().mean(), (a - b).std() / len(a) ** 0.5),
            "You drop the signs of the rows. A model that is better on half of them and worse on the other half is not better.",
            "chapter 12, section 3",
        ),
    ),
)


def known(chosen):
    """chosen [questions, 4]: number of the letter, -1 for none; right in rotation r is r -> (accuracy, consistent), 0-d tensors"""
    right = (chosen == torch.arange(4)).double()
    return right.mean(), right.prod(1).mean()


def known_inputs(draw: Draw) -> Iterator[Case]:
    right = torch.arange(4)
    yield Case("always A", chosen=torch.zeros(5, 4, dtype=torch.long))
    yield Case("always right", chosen=right.expand(3, 4).clone())
    yield Case("never a letter", chosen=torch.full((2, 4), -1))
    mixed = torch.stack([right, right.flip(0), torch.tensor([0, 1, 2, -1]), torch.full((4,), 2), right])
    yield Case("some of each", chosen=mixed)
    yield Case("more rights than questions", chosen=torch.stack([right, torch.tensor([0, 1, 2, 0])]))
    yield Case(
        "random letters",
        chosen=torch.tensor([[draw.integer(-1, 3) for _ in range(4)] for _ in range(7)] + [[0, 1, 2, 3]]),
    )


KNOWN = Task(
    number="12.4",
    title="A habit for a letter",
    minutes=10,
    difficulty="easy",
    statement="""\
Each question is asked four times, its options moved on by one each time, so that the right answer stands at A (0), B (1), C (2) and D (3) once.
`chosen` is [questions, 4]: the number of the letter that the model wrote in each rotation, -1 where it wrote none. In rotation r the right letter is r.

Write `known(chosen)`. Return `(accuracy, consistent)` as float64: the share of right letters among all that were asked, and the share of *questions* that were
answered rightly in every rotation.""",
    hints=(
        "`chosen == torch.arange(4)` is True where the letter is right.",
        "A question counts as known if the product of its four is 1.",
        "`right.mean(), right.prod(1).mean()`, with right as float64.",
    ),
    reference=known,
    inputs=known_inputs,
    returns=("accuracy", "consistent"),
    section="chapter 12, section 6",
    mistakes=(
        Mistake(
            "right once is enough",
            lambda chosen: (known(chosen)[0], (chosen == torch.arange(4)).any(1).double().mean()),
            "You count a question that was right in any rotation. A model that always answers A is right once in each, and knows nothing.",
            "chapter 12, section 6",
        ),
        Mistake(
            "A is right",
            lambda chosen: ((chosen == 0).double().mean(), (chosen == 0).all(1).double().mean()),
            "You take A for the right letter in every rotation. It moves: in rotation r it is r.",
            "chapter 12, section 6",
        ),
        Mistake(
            "silence left out",
            lambda chosen: (
                ((chosen == torch.arange(4)) & (chosen >= 0)).double().sum() / (chosen >= 0).sum().clamp(min=1),
                known(chosen)[1],
            ),
            "You divide by the letters that were written. No letter is no right answer: divide by all that were asked.",
            "chapter 12, section 6",
        ),
        Mistake(
            "the same letter",
            lambda chosen: (known(chosen)[0], (chosen == chosen[:, :1]).all(1).double().mean()),
            "You count questions that got the same letter four times. That is the habit you want to find, not knowledge.",
            "chapter 12, section 6",
        ),
        Mistake(
            "consistent alone",
            lambda chosen: (known(chosen)[1], known(chosen)[1]),
            "Your accuracy counts whole questions. It is the share of right letters among all rotations.",
            "chapter 12, section 6",
        ),
        Mistake(
            "counts",
            lambda chosen: ((chosen == torch.arange(4)).double().sum(), known(chosen)[1] * len(chosen)),
            "You return how many. Asked are shares.",
            "chapter 12, section 6",
        ),
    ),
)


def verdict(recovered, control):
    """losses [N] on the same rows -> "lower", "higher" or "no difference" """
    d = recovered - control
    error = d.std() / len(d) ** 0.5
    if d.mean().abs() <= 3 * error:
        return "no difference"
    return "lower" if d.mean() < 0 else "higher"


def verdict_inputs(draw: Draw) -> Iterator[Case]:
    def rows(N: int, shift: float, noise: float = 0.05) -> dict[str, torch.Tensor]:
        """A shift of so many standard errors, exactly."""
        control = 2.5 + draw.normal(N, scale=0.6, dtype=torch.float64)
        d = draw.normal(N, dtype=torch.float64)
        d = (d - d.mean()) / d.std() * noise
        return {"recovered": control + d + shift * noise / N**0.5, "control": control}

    for N, shift in ((16, -5.0), (16, 5.0), (9, 2.0), (9, -2.0), (25, 0.2), (25, -0.5), (6, -3.3), (6, 3.3), (12, 2.7)):
        yield Case("", **rows(N, shift))
    yield Case("rows that differ from each other by more", **rows(16, 8.0, noise=1.0))
    same = rows(5, 0.0)["control"]
    yield Case("the same model twice", recovered=same, control=same.clone())


def _verdict(error=lambda a, b: (a - b).std() / len(a) ** 0.5, sigmas=3.0, lower="lower", higher="higher"):
    def judge(recovered, control):
        d = (recovered - control).mean()
        if d.abs() <= sigmas * error(recovered, control):
            return "no difference"
        return lower if d < 0 else higher

    return judge


VERDICT = Task(
    number="12.5",
    title="Does the recurrence help?",
    minutes=10,
    difficulty="medium",
    statement="""\
`recovered` and `control` are the losses [N] of two models on the same rows: one with a recurrence, one with its window and sink alone, both trained with
the same tokens and the same LoRA. Say what can be said.

Write `verdict(recovered, control)`. Where the mean difference is at most three of its standard errors (paired by row, task 12.3), return `"no difference"`.
Else return `"lower"` or `"higher"`, as the recovered model's loss is.""",
    hints=(
        "The difference row by row, its mean, its standard error.",
        "First the case that nothing can be said: `abs(mean) <= 3 * error`.",
        "A negative mean of recovered - control is a lower loss of the recovered model.",
    ),
    reference=verdict,
    inputs=verdict_inputs,
    survivors={
        "return 'lower' if d.mean() < 0 else 'higher' → return 'lower' if d.mean() <= 0 else 'higher'": "a mean of 0 was answered before",
        "return 'lower' if d.mean() < 0 else 'higher' → return 'lower' if d.sum() < 0 else 'higher'": "a sum has the sign of its mean",
    },
    section="chapter 12, section 3",
    mistakes=(
        Mistake(
            "means alone",
            _verdict(sigmas=0.0),
            "You compare means and ask for no error. Two trainings of the same model would differ, too.",
            "chapter 12, section 3",
        ),
        Mistake(
            "one standard error",
            _verdict(sigmas=1.0),
            "You are content with one standard error. Chance alone passes that in one of three comparisons; this course asks for three.",
            "chapter 12, section 3",
        ),
        Mistake(
            "unpaired errors",
            _verdict(lambda a, b: ((a.var() + b.var()) / len(a)) ** 0.5),
            "Your error is unpaired. Rows are hard or easy for both models, and that spread hides every difference.",
            "chapter 12, section 3",
        ),
        Mistake(
            "the deviation of rows",
            _verdict(lambda a, b: (a - b).std()),
            "You compare with the spread of single rows. The mean over N rows is known √N times better.",
            "chapter 12, section 3",
        ),
        Mistake(
            "turned round",
            _verdict(lower="higher", higher="lower"),
            'A lower loss is better, and you call it "higher": look at the sign of recovered - control.',
            "chapter 12, section 3",
        ),
        Mistake(
            "hoping",
            lambda recovered, control: (
                "no difference" if verdict(recovered, control) == "higher" else verdict(recovered, control)
            ),
            'You never answer "higher". A recurrence can also do harm, and that has to be said as plainly.',
            "chapter 12, section 3",
        ),
    ),
)

TASKS = (FIRST_TOKEN_SHARE, KL_FROM_TEACHER, PAIRED_DIFFERENCE, KNOWN, VERDICT)
