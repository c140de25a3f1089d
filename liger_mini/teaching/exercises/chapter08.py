"""Tasks of chapter 08: LoRA recovery."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def lora_change(A, B, alpha):
    """A [r, in]; B [out, r]; alpha a number -> [out, in]"""
    return alpha / A.shape[0] * (B @ A)


def lora_inputs(draw: Draw) -> Iterator[Case]:
    for name, (r, d_in, d_out, alpha) in {
        "more inputs than outputs": (3, 7, 5, 8),
        "more outputs than inputs": (2, 4, 9, 3.0),
        "a square weight": (2, 6, 6, 16),
        "r = in": (4, 4, 6, 2),
        "r = out": (4, 6, 4, 2),
        "r = in = out": (5, 5, 5, 0.5),
        "rank 1": (1, 5, 3, 4),
        "a rank above both widths": (7, 4, 5, 12),
    }.items():
        yield Case(name, A=draw.normal(r, d_in), B=draw.normal(d_out, r), alpha=alpha)


LORA_CHANGE = Task(
    number="08.1",
    title="What LoRA adds to a weight",
    minutes=5,
    difficulty="easy",
    statement="""\
LoRA trains two thin matrices beside a frozen weight W of the shape [out, in]:

$$W' = W + \\frac{\\alpha}{r} B A$$

Write `lora_change(A, B, alpha)`: what is added to W when the adapter is merged, [out, in]. `A` is [r, in], `B` is [out, r], and
`alpha` is a number.""",
    hints=(
        "A layer computes x Wᵀ: first A brings x down to r numbers, then B brings them up to the outputs.",
        "Which of the two products has the shape [out, in]? The rank is the axis that A and B share.",
        "`alpha / A.shape[0] * (B @ A)`.",
    ),
    reference=lora_change,
    inputs=lora_inputs,
    section="chapter 08, section 1",
    mistakes=(
        Mistake(
            "alpha without the rank",
            lambda A, B, alpha: alpha * (B @ A),
            "You scale by α. The factor is α / r: a higher rank sums up more products, and r keeps the change at its size.",
            "chapter 08, section 1",
        ),
        Mistake(
            "the width for the rank",
            lambda A, B, alpha: alpha / A.shape[1] * (B @ A),
            "You divide by the number of inputs. The rank is the axis that A and B share: A's first, B's second.",
            "chapter 08, section 1",
        ),
        Mistake(
            "the outputs for the rank",
            lambda A, B, alpha: alpha / B.shape[0] * (B @ A),
            "You divide by the number of outputs. The rank is the axis that A and B share: A's first, B's second.",
            "chapter 08, section 1",
        ),
        Mistake(
            "A before B",
            lambda A, B, alpha: alpha / A.shape[0] * (A @ B),
            "You multiply A B. That has the shape [r, r] where it exists at all; B A has the weight's, [out, in].",
            "chapter 08, section 1",
        ),
        Mistake(
            "transposed",
            lambda A, B, alpha: alpha / A.shape[0] * (B @ A).T,
            "Your result is [in, out]. A weight of PyTorch's `Linear` has the outputs first, [out, in].",
            "chapter 08, section 1",
        ),
        Mistake(
            "the root of the rank",
            lambda A, B, alpha: alpha / A.shape[0] ** 0.5 * (B @ A),
            "You divide by √r. That is rank-stabilized LoRA, an option of PEFT; the course and the paper divide by r.",
            "chapter 08, section 1",
        ),
        Mistake(
            "no alpha",
            lambda A, B, alpha: (B @ A) / A.shape[0],
            "You divide by the rank, but α is missing.",
            "chapter 08, section 1",
        ),
        Mistake(
            "B A alone",
            lambda A, B, alpha: B @ A,
            "You leave the factor out: α / r is missing.",
            "chapter 08, section 1",
        ),
        Mistake(
            "upside down",
            lambda A, B, alpha: A.shape[0] / alpha * (B @ A),
            "Your factor is upside down. A larger α makes the change larger: α / r.",
            "chapter 08, section 1",
        ),
        Mistake(
            "multiplied by the rank",
            lambda A, B, alpha: alpha * A.shape[0] * (B @ A),
            "You multiply by the rank. The change is divided by it.",
            "chapter 08, section 1",
        ),
        Mistake(
            "a whole-number division",
            lambda A, B, alpha: alpha // A.shape[0] * (B @ A),
            "You divide α by r with `//`, which cuts the factor down to a whole number. Use `/`.",
            "chapter 08, section 1",
        ),
    ),
)


def trained_parameters(layers, hidden, heads, kv_heads, head_dim, rank):
    """sizes of a model, and LoRA's rank -> how many numbers LoRA trains (int)"""
    q = hidden + heads * head_dim
    k = hidden + kv_heads * head_dim
    return layers * rank * (q + 2 * k)


def parameters_inputs(draw: Draw) -> Iterator[Case]:
    sizes = [
        ("Llama-3.2-1B", 16, 2048, 32, 8, 64, 8),
        ("queries wider than the model", 28, 1024, 16, 8, 128, 16),
        ("no shared heads", 6, 256, 8, 8, 32, 4),
        ("", draw.integer(2, 30), 96, 6, 2, draw.integer(17, 40), draw.integer(3, 64)),
    ]
    names = ("layers", "hidden", "heads", "kv_heads", "head_dim", "rank")
    for name, *values in sizes:
        yield Case(name, **dict(zip(names, values)))


TRAINED_PARAMETERS = Task(
    number="08.2",
    title="How many numbers LoRA trains",
    minutes=10,
    difficulty="easy",
    statement="""\
The recovery puts adapters on $W_q$, $W_k$ and $W_v$ of each layer. In a model with grouped heads, $W_q$ takes `hidden` numbers to
`heads · head_dim`, and $W_k$ and $W_v$ take `hidden` numbers to `kv_heads · head_dim`. (In some models `heads · head_dim` is not
`hidden`.) Write `trained_parameters(layers, hidden, heads, kv_heads, head_dim, rank)`: how many numbers are trained, as an int.""",
    hints=(
        "An adapter beside a weight [out, in] has r · in numbers in A, and out · r in B.",
        "So it has r (in + out): a sum, where the weight itself has a product.",
        "One q, one k and one v per layer: r (hidden + heads · head_dim) + 2 r (hidden + kv_heads · head_dim).",
    ),
    reference=trained_parameters,
    inputs=parameters_inputs,
    section="chapter 08, section 6",
    mistakes=(
        Mistake(
            "PEFT's own targets",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: (
                layers * rank * (2 * hidden + (heads + kv_heads) * head_dim)
            ),
            "You counted two of three adapters. PEFT's default targets leave k_proj out, and with it the gate; ours are q, k and v.",
            "chapter 08, section 1",
        ),
        Mistake(
            "all projections are alike",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: layers * rank * 3 * (hidden + heads * head_dim),
            "You gave keys and values as many heads as queries. They have `kv_heads`, and narrower projections.",
            "chapter 08, section 6",
        ),
        Mistake(
            "the weights themselves",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: layers * hidden * (heads + 2 * kv_heads) * head_dim,
            "You counted the frozen weights. LoRA trains A and B, r (in + out) numbers for each of them.",
            "chapter 08, section 1",
        ),
        Mistake(
            "A alone",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: layers * rank * 3 * hidden,
            "You counted A, [r, in]. B starts at zero, but it is trained as well, [out, r].",
            "chapter 08, section 1",
        ),
        Mistake(
            "B alone",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: layers * rank * (heads + 2 * kv_heads) * head_dim,
            "You counted B, [out, r]. A is trained as well, [r, in], once for each of the three projections.",
            "chapter 08, section 1",
        ),
        Mistake(
            "the output projection too",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: (
                layers * rank * (4 * hidden + 2 * (heads + kv_heads) * head_dim)
            ),
            "You counted o_proj as well. The recovery's adapters are on q, k and v only.",
            "chapter 08, section 1",
        ),
        Mistake(
            "one layer",
            lambda layers, hidden, heads, kv_heads, head_dim, rank: (
                rank * (3 * hidden + (heads + 2 * kv_heads) * head_dim)
            ),
            "That is one layer. Each layer has adapters of its own.",
            "chapter 08, section 6",
        ),
    ),
)


def next_token_loss(logits, labels):
    """logits [B, T, N]; labels [B, T], int64, -100 where not scored -> a number, []"""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def loss_inputs(draw: Draw) -> Iterator[Case]:
    for name, (B, T, N, scale) in {
        "several rows": (3, 8, 5, 1.0),
        "one row": (1, 6, 4, 2.0),
        "as many rows as tokens": (6, 6, 6, 1.0),
        "very sure": (2, 12, 9, 100.0),
    }.items():
        labels = (draw.uniform(B, T) * N).long().clamp(max=N - 1)
        for row in range(B):  # a question, which is not scored, then an answer, then padding: in each row elsewhere
            labels[row, : 1 + row % 3] = -100
            labels[row, T - row :] = -100
        labels[0, T // 2] = -100
        yield Case(name, logits=draw.normal(B, T, N, scale=scale), labels=labels)


def loss_with_mask_of_inputs(logits, labels):
    keep = labels[:, :-1] != -100
    return F.cross_entropy(logits[:, :-1][keep], labels[:, 1:][keep])


def loss_of_rows(logits, labels):
    return torch.stack([F.cross_entropy(x[:-1], y[1:]) for x, y in zip(logits, labels)]).mean()


def loss_over_all(logits, labels):
    return F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="sum") / labels[:, 1:].numel()


def loss_of_zero_labels(logits, labels):
    return F.cross_entropy(logits[:, :-1].mT, labels[:, 1:].clamp(min=0))


def loss_of_softmax(logits, labels):
    return F.nll_loss(logits[:, :-1].softmax(-1).log().mT, labels[:, 1:])


NEXT_TOKEN_LOSS = Task(
    number="08.3",
    title="The loss of a row that is half question",
    minutes=15,
    difficulty="medium",
    statement="""\
The logits at position t predict the token at t + 1. A label of -100 is not scored: it belongs to a question, or to padding. Write
`next_token_loss(logits, labels)`: `logits` is [B, T, N] for a vocabulary of N tokens, and `labels` is [B, T], where `labels[b, t]` is the token
at t itself or -100. The result is one number: the mean of

$$-\\log \\mathrm{softmax}(\\mathrm{logits}_{b,t})[\\mathrm{label}_{b,t+1}]$$

over all labels of the batch that are scored. Large logits must not overflow, and the gradient has to be right, too.""",
    hints=(
        "The last logits and the first label have no partner.",
        "`logits[:, :-1]` belongs to `labels[:, 1:]`. Flatten both, so that all labels of the batch are in one list.",
        "`F.cross_entropy` leaves labels of -100 out of its mean (`ignore_index`).",
    ),
    reference=next_token_loss,
    inputs=loss_inputs,
    gradients=("logits",),
    section="chapter 08, section 2",
    mistakes=(
        Mistake(
            "no shift",
            lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            "Your logits at t are compared with the label at t, which the model has just read. They predict the next one.",
            "chapter 08, section 2",
        ),
        Mistake(
            "shifted the other way",
            lambda logits, labels: F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten()),
            "You shifted the wrong way: your logits at t are compared with the label at t - 1.",
            "chapter 08, section 2",
        ),
        Mistake(
            "the mean over everything",
            loss_over_all,
            "Your sum is right, but you divide by all labels. Those that are not scored do not count in the mean either.",
            "chapter 08, section 2",
        ),
        Mistake(
            "the mean of the rows' means",
            loss_of_rows,
            "You average within each row first. Then a token of a short answer weighs more than one of a long answer. Take one mean over "
            "all scored labels of the batch.",
            "chapter 08, section 2",
        ),
        Mistake(
            "the mask of the input",
            loss_with_mask_of_inputs,
            "You mask by the label at t, the token that is read. What counts is the label that is predicted, at t + 1. The first token "
            "of an answer is predicted from the question's last one.",
            "chapter 08, section 2",
        ),
        Mistake(
            "-100 taken for a token",
            loss_of_zero_labels,
            "You score the labels of -100 as if they were token 0. Leave them out.",
            "chapter 08, section 2",
        ),
        Mistake(
            "the sum",
            lambda logits, labels: F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            ),
            "You take the sum. The loss is a mean, so that it does not depend on how many labels a batch has.",
            "chapter 08, section 2",
        ),
        Mistake(
            "log of a softmax",
            loss_of_softmax,
            "Your softmax becomes 0 in float32 where the model is very sure, and its logarithm -inf. Use `log_softmax` or `cross_entropy`.",
            "chapter 08, section 2",
        ),
    ),
)


def learning_rate(step, steps, warm_up, peak):
    """step from 0 to steps; warm_up < steps -> the learning rate of that step (float)"""
    if step < warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / (steps - warm_up)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def rate_inputs(draw: Draw) -> Iterator[Case]:
    peak = float(draw.uniform(low=1e-3, high=5e-3))
    steps = draw.integer(150, 400)
    warm_up = draw.integer(8, 20)
    for name, step in {
        "the first step": 0,
        "in the warm-up": warm_up // 2,
        "the last of the warm-up": warm_up - 1,
        "the peak": warm_up,
        "one step on": warm_up + 1,
        "early": steps // 4,
        "in the middle": steps // 2,
        "late": 4 * steps // 5,
        "at the end": steps,
    }.items():
        yield Case(name, step=step, steps=steps, warm_up=warm_up, peak=peak)
    for step in (0, 3):
        yield Case("no warm-up", step=step, steps=10, warm_up=0, peak=1.0)
    for step in (0, 1, 2):
        yield Case("a warm-up of one step", step=step, steps=10, warm_up=1, peak=0.5)


def rate_without_warm_up(step, steps, warm_up, peak):
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def rate_of_the_next_step(step, steps, warm_up, peak):
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def rate_linear(step, steps, warm_up, peak):
    return peak * step / warm_up if step < warm_up else peak * (steps - step) / (steps - warm_up)


def rate_that_jumps(step, steps, warm_up, peak):
    return peak * step / warm_up if step < warm_up else peak * (1 + math.cos(math.pi * step / steps)) / 2


def rate_quarter(step, steps, warm_up, peak):
    if step < warm_up:
        return peak * step / warm_up
    return peak * math.cos(math.pi / 2 * (step - warm_up) / (steps - warm_up))


def rate_late(step, steps, warm_up, peak):
    if step < warm_up:
        return peak * step / warm_up
    return peak * (1 + math.cos(math.pi * (step - warm_up) / steps)) / 2


LEARNING_RATE = Task(
    number="08.4",
    title="Warm-up and cosine",
    minutes=10,
    difficulty="easy",
    statement="""\
The learning rate of a recovery rises from 0 to its peak in a straight line, and then falls to 0 along half a cosine. Write
`learning_rate(step, steps, warm_up, peak)`: the rate of a step as a float. `step` counts from 0. The rate is 0 at step 0,
`peak` at step `warm_up`, and 0 again at step `steps`. In between it has fallen by

$$\\tfrac12\\,(1 + \\cos \\pi p), \\qquad p = \\text{the share of the steps after the warm-up that is done.}$$

A warm-up of 0 steps starts at the peak, and `warm_up` is always less than `steps`.""",
    hints=(
        "Two cases: in the warm-up (`step < warm_up`), and after it.",
        "p is 0 at step `warm_up` and 1 at step `steps`.",
        "p = (step - warm_up) / (steps - warm_up).",
    ),
    reference=learning_rate,
    inputs=rate_inputs,
    tolerance=1e-5,
    survivors={
        "progress = (step - warm_up) / (steps - warm_up) → progress = (warm_up - step) / (steps - warm_up)": "a cosine "
        "does not see the sign",
        "progress = (step - warm_up) / (steps - warm_up) → progress = (step - warm_up) / (warm_up - steps)": "a cosine "
        "does not see the sign",
    },
    section="chapter 08, section 2",
    mistakes=(
        Mistake(
            "no warm-up",
            rate_without_warm_up,
            "Your rate starts at the peak. In the first `warm_up` steps it rises to it from 0, while AdamW's moments settle.",
            "chapter 08, section 2",
        ),
        Mistake(
            "a step early",
            rate_of_the_next_step,
            "Your warm-up is a step early: at step 0 the rate is 0, and the peak comes at step `warm_up`.",
            "chapter 08, section 2",
        ),
        Mistake(
            "a straight line",
            rate_linear,
            "Your rate falls in a straight line. A cosine is slow at both ends and fast in the middle.",
            "chapter 08, section 2",
        ),
        Mistake(
            "a jump after the warm-up",
            rate_that_jumps,
            "Your cosine starts at step 0, so the rate never reaches the peak and jumps down after the warm-up. It starts where the "
            "warm-up ends.",
            "chapter 08, section 2",
        ),
        Mistake(
            "a quarter of a cosine",
            rate_quarter,
            "Your curve is a quarter of a cosine, steepest at the end. Half a cosine, from 1 to -1, is lifted and halved: (1 + cos πp) / 2.",
            "chapter 08, section 2",
        ),
        Mistake(
            "does not reach 0",
            rate_late,
            "Your rate is not 0 at the end: of `steps` steps the warm-up took some, so the cosine has steps - warm_up.",
            "chapter 08, section 2",
        ),
    ),
)


def distillation_loss(student, teacher, targets, weight):
    """student, teacher [N, vocabulary], logits; targets [N], int64; weight in [0, 1] -> a number, []"""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return (1 - weight) * F.cross_entropy(student, targets) + weight * kl


def distillation_inputs(draw: Draw) -> Iterator[Case]:
    for name, (N, words, scale, weight) in {
        "": (7, 5, 1.0, 0.3),
        "KL alone": (4, 9, 2.0, 1.0),
        "no distillation": (5, 6, 1.0, 0.0),
        "as many tokens as words": (6, 6, 2.0, 0.8),
        "very sure": (9, 40, 400.0, 0.6),
        "one token": (1, 3, 1.0, 0.5),
    }.items():
        student, teacher = (draw.normal(N, words, scale=scale, dtype=torch.float64) for _ in range(2))
        targets = (draw.uniform(N) * words).long().clamp(max=words - 1)
        yield Case(name, student=student, teacher=teacher, targets=targets, weight=weight)


def kl_reversed(student, teacher, targets, weight):
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    return (1 - weight) * F.cross_entropy(student, targets) + weight * kl


def kl_without_entropy(student, teacher, targets, weight):
    soft = F.cross_entropy(student, teacher.softmax(-1))
    return (1 - weight) * F.cross_entropy(student, targets) + weight * soft


def kl_over_words(student, teacher, targets, weight):
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (1 - weight) * F.cross_entropy(student, targets) + weight * (log_p.exp() * (log_p - log_q)).mean()


def kl_summed(student, teacher, targets, weight):
    kl = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="sum")
    return (1 - weight) * F.cross_entropy(student, targets) + weight * kl


def kl_of_softmax(student, teacher, targets, weight):
    p, q = teacher.softmax(-1), student.softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1).mean()
    return (1 - weight) * F.cross_entropy(student, targets) + weight * kl


def kl_of_logits(student, teacher, targets, weight):
    kl = (teacher.softmax(-1) * (teacher - student)).sum(-1).mean()
    return (1 - weight) * F.cross_entropy(student, targets) + weight * kl


def kl_weights_swapped(student, teacher, targets, weight):
    kl = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    return weight * F.cross_entropy(student, targets) + (1 - weight) * kl


def kl_added(student, teacher, targets, weight):
    kl = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    return F.cross_entropy(student, targets) + weight * kl


DISTILLATION_LOSS = Task(
    number="08.5",
    title="Distillation",
    minutes=20,
    difficulty="medium",
    statement="""\
With distillation the student learns the next token, and the teacher's whole distribution beside it:

$$(1 - \\lambda)\\,\\mathrm{mean}_n\\big(-\\log q_n[\\mathrm{target}_n]\\big) + \\lambda\\;\\mathrm{mean}_n \\sum_w p_n[w]\\,\\log\\frac{p_n[w]}{q_n[w]}$$

where $p_n$ is the teacher's distribution over the words w for token n, and $q_n$ the student's. The second term is KL(teacher ‖ student).
Write `distillation_loss(student, teacher, targets, weight)`: `student` and `teacher` are logits [N, vocabulary] in float64, `targets` is [N],
and `weight` is λ. The means are over the N tokens. It has to be finite for logits in the thousands, and so does the student's gradient.""",
    hints=(
        "`log_softmax` gives log p and log q, and never -inf.",
        "`log_p.exp() * (log_p - log_q)`: sum it over the vocabulary, then take the mean over the tokens.",
        "`F.kl_div(log_q, log_p, log_target=True, reduction='batchmean')` is the same; mind the order of its arguments.",
    ),
    reference=distillation_loss,
    inputs=distillation_inputs,
    gradients=("student",),
    tolerance=1e-5,
    section="chapter 08, section 5",
    mistakes=(
        Mistake(
            "the other KL",
            kl_reversed,
            "You computed KL(student ‖ teacher), weighted by the student's probabilities. The teacher's are wanted: where the teacher "
            "expects a word, the student has to, too.",
            "chapter 08, section 5",
        ),
        Mistake(
            "a cross-entropy",
            kl_without_entropy,
            "Your second term is the cross-entropy between teacher and student. Its gradient is right; but KL takes the teacher's own "
            "entropy off, so that a perfect student scores 0.",
            "chapter 08, section 5",
        ),
        Mistake(
            "a mean over words",
            kl_over_words,
            "You take a mean over the vocabulary. KL is a sum over words, and the mean is over tokens (`kl_div`'s 'mean' does the same "
            "to you; 'batchmean' does not).",
            "chapter 08, section 5",
        ),
        Mistake(
            "a sum over tokens",
            kl_summed,
            "Your KL is a sum over the tokens, so it outweighs the next-token loss in a long row. Both terms are means over tokens.",
            "chapter 08, section 5",
        ),
        Mistake(
            "logarithms of a softmax",
            kl_of_softmax,
            "A probability of your softmax becomes 0, its logarithm -inf, and 0 times infinity NaN. `log_softmax` keeps the logarithms finite.",
            "chapter 08, section 5",
        ),
        Mistake(
            "logits for logarithms",
            kl_of_logits,
            "You subtract logits. They are log-probabilities only up to a constant, and that differs between teacher and student: "
            "normalize both with `log_softmax`.",
            "chapter 08, section 5",
        ),
        Mistake(
            "weights swapped",
            kl_weights_swapped,
            "Your weights are swapped: λ belongs to the KL, and 1 - λ to the next token.",
            "chapter 08, section 5",
        ),
        Mistake(
            "added",
            kl_added,
            "You add λ KL to the whole next-token loss. Here the two are mixed: the next token has the share 1 - λ.",
            "chapter 08, section 5",
        ),
    ),
)


def transfer_loss(outputs, targets):
    """outputs, targets [L, T, D] -> a number, []"""
    errors = (outputs - targets).square().sum((1, 2))
    return (errors / targets.square().sum((1, 2))).mean()


def transfer_inputs(draw: Draw) -> Iterator[Case]:
    for name, (L, T, D) in {"four layers": (4, 6, 5), "one layer": (1, 3, 2), "L = T = D": (3, 3, 3)}.items():
        sizes = 10 ** draw.uniform(L, 1, 1, low=-1, high=1)  # of a layer's outputs
        targets = sizes * draw.normal(L, T, D) * draw.uniform(L, T, 1, low=0.2, high=2)
        yield Case(name, outputs=targets + sizes * draw.normal(L, T, D, scale=0.5), targets=targets)
    yield Case("nothing but zeros", outputs=torch.zeros(2, 4, 3), targets=draw.normal(2, 4, 3))


TRANSFER_LOSS = Task(
    number="08.6",
    title="Attention transfer",
    minutes=10,
    difficulty="medium",
    statement="""\
In attention transfer each layer learns to give what its softmax layer gave. Its error is $\\lVert o - o_T \\rVert^2 / \\lVert o_T \\rVert^2$, where a norm
is over all numbers of the layer: all tokens and all channels. The loss is the mean of the errors over the layers. Write
`transfer_loss(outputs, targets)`: both are [L, T, D] for L layers, T tokens and D channels. The result is one number. Layers differ in the
size of what they give, and no layer should count more for it. The gradient of the outputs has to be right, too.""",
    hints=(
        "For each layer there are two numbers: a sum of squared differences, and a sum of squares.",
        "`.square().sum((1, 2))` leaves one number per layer.",
        "Divide layer by layer, then take the mean.",
    ),
    reference=transfer_loss,
    inputs=transfer_inputs,
    gradients=("outputs",),
    survivors={
        "errors = (outputs - targets).square().sum((1, 2)) → errors = (targets - outputs).square().sum((1, 2))": "a square "
        "does not see the sign",
    },
    section="chapter 08, section 5",
    mistakes=(
        Mistake(
            "one ratio for all layers",
            lambda outputs, targets: (outputs - targets).square().sum() / targets.square().sum(),
            "You divide two sums over all layers. Then the layer with the largest outputs is the only one that counts. Divide "
            "layer by layer, and average the ratios.",
            "chapter 08, section 5",
        ),
        Mistake(
            "a ratio for each token",
            lambda outputs, targets: ((outputs - targets).square().sum(-1) / targets.square().sum(-1)).mean(),
            "You divide token by token. A token whose target is small would count as much as one that matters. Sum over the tokens of a "
            "layer first.",
            "chapter 08, section 5",
        ),
        Mistake(
            "norms, not squared",
            lambda outputs, targets: ((outputs - targets).norm(dim=(1, 2)) / targets.norm(dim=(1, 2))).mean(),
            "You divide the norms. The error is the ratio of their squares.",
            "chapter 08, section 5",
        ),
        Mistake(
            "no denominator",
            lambda outputs, targets: (outputs - targets).square().mean(),
            "That is a mean squared error. Without the denominator a layer with large outputs counts more than the others.",
            "chapter 08, section 5",
        ),
        Mistake(
            "divided by the student's output",
            lambda outputs, targets: ((outputs - targets).square().sum((1, 2)) / outputs.square().sum((1, 2))).mean(),
            "You divide by the student's own output. That makes long outputs cheap, and zeros infinitely bad. Divide by the target's.",
            "chapter 08, section 5",
        ),
        Mistake(
            "the sum over layers",
            lambda outputs, targets: ((outputs - targets).square().sum((1, 2)) / targets.square().sum((1, 2))).sum(),
            "You add the layers' errors. The loss is their mean, so that it means the same for models of any depth.",
            "chapter 08, section 5",
        ),
    ),
)

TASKS = (LORA_CHANGE, TRAINED_PARAMETERS, NEXT_TOKEN_LOSS, LEARNING_RATE, DISTILLATION_LOSS, TRANSFER_LOSS)
