"""Right answers to chapter 08's tasks that are not the reference: two for each."""

import math

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import get_cosine_schedule_with_warmup


def lora_by_ranks(A, B, alpha):
    r, change = B.shape[1], torch.zeros(B.shape[0], A.shape[1])
    for i in range(r):
        change = change + torch.outer(B[:, i], A[i])
    return change * alpha / r


def parameters_of_peft(layers, hidden, heads, kv_heads, head_dim, rank):
    """PEFT on one layer of the three shapes, without memory."""
    with torch.device("meta"):
        shapes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        layer = nn.ModuleDict({name: nn.Linear(hidden, n * head_dim) for name, n in shapes.items()})
        layer = get_peft_model(layer, LoraConfig(r=rank, target_modules=list(shapes)))
    return layers * layer.get_nb_trainable_parameters()[0]


def parameters_by_weights(layers, hidden, heads, kv_heads, head_dim, rank):
    total = 0
    for _ in range(layers):
        for out in (heads, kv_heads, kv_heads):
            total += rank * hidden + out * head_dim * rank
    return total


def loss_loops(logits, labels):
    losses = []
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            if labels[b, t + 1] != -100:
                losses.append(logits[b, t].logsumexp(0) - logits[b, t, labels[b, t + 1]])
    return torch.stack(losses).mean()


def loss_gathered(logits, labels):
    targets = labels[:, 1:]
    scored = (targets != -100).double()
    chosen = logits[:, :-1].double().log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(chosen * scored).sum() / scored.sum()


def rate_of_transformers(step, steps, warm_up, peak):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = get_cosine_schedule_with_warmup(optimizer, warm_up, steps)
    return peak * schedule.lr_lambdas[0](step)


def rate_squared(step, steps, warm_up, peak):
    left = (steps - step) / (steps - warm_up)
    return peak * (step / warm_up if warm_up and step <= warm_up else math.sin(math.pi / 2 * left) ** 2)


def distillation_kl_div(student, teacher, targets, weight):
    log_q = F.log_softmax(student, dim=1)
    kl = F.kl_div(log_q, F.log_softmax(teacher, dim=1), log_target=True, reduction="batchmean")
    return F.nll_loss(log_q, targets) * (1 - weight) + kl * weight


def distillation_by_entropies(student, teacher, targets, weight):
    p = teacher.softmax(-1)
    entropy = torch.special.entr(p).sum(-1).mean()
    return torch.lerp(F.cross_entropy(student, targets), F.cross_entropy(student, p) - entropy, weight)


def transfer_loop(outputs, targets):
    errors = [((o - t) ** 2).sum() / (t**2).sum() for o, t in zip(outputs, targets)]
    return sum(errors) / len(errors)


def transfer_norms(outputs, targets):
    o, t = outputs.flatten(1).double(), targets.flatten(1).double()
    return ((o - t).norm(dim=1) / t.norm(dim=1)).pow(2).mean()


ANSWERS = {
    "08.1": (lora_by_ranks, lambda A, B, alpha: torch.einsum("or,ri->oi", B.double(), A.double() * alpha) / B.shape[1]),
    "08.2": (parameters_of_peft, parameters_by_weights),
    "08.3": (loss_loops, loss_gathered),
    "08.4": (rate_of_transformers, rate_squared),
    "08.5": (distillation_kl_div, distillation_by_entropies),
    "08.6": (transfer_loop, transfer_norms),
}
