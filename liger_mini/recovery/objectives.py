"""What recovery trains for, beyond the paper's next-token loss (chapter 08).

The teacher needs no second copy of its weights. It is still inside the student: with the adapters switched off and the
window opened to the whole text, every layer computes its old softmax attention (`as_teacher`).

* Distillation: the student's next-token distribution against the teacher's.
* Attention transfer (as LoLCATs does): each layer's attention output against the softmax layer's, on the teacher's own
  inputs to that layer, so that no layer has to learn from another one's mistakes.
* Window dropout: a layer goes without its window, with a probability that falls to zero over training, so that the
  recurrence has to carry what the window cannot.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler
from transformers import Trainer, TrainerCallback

from liger_mini.attention import LigerAttention, liger_layers
from liger_mini.corpora.tokens import IGNORE

EVERYTHING = 2**31 - 1  # a window no text is longer than


@contextmanager
def as_teacher(model: PeftModel) -> Iterator[None]:
    """Inside the `with`, the model is its teacher: no adapters, softmax attention over all it saw, no gradient."""
    layers = liger_layers(model)
    before = [(layer.branches, layer.window, layer.sinks) for layer in layers]
    try:
        for layer in layers:
            layer.branches, layer.window, layer.sinks = (0.0, 1.0), layer.own_window or EVERYTHING, 0
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        for layer, own in zip(layers, before):
            layer.branches, layer.window, layer.sinks = own


class NextTokenTrainer(Trainer):
    """The Trainer, whose epochs are as many full batches however a batch is cut into micro-batches.

    The Trainer itself drops the last *micro*-batch that is not full, and makes a smaller batch of those before it.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RandomSampler:
        rows, batch = len(self.train_dataset), self.get_total_train_batch_size(self.args)
        return RandomSampler(self.train_dataset, num_samples=rows // batch * batch)  # the first of the same order


class DistillationTrainer(NextTokenTrainer):
    """(1 - λ) · next-token loss + λ · KL(teacher ‖ student), over the scored tokens."""

    def __init__(self, *args, weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight = weight

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with as_teacher(self.accelerator.unwrap_model(model)):
            teacher = _scored(model(**_without_labels(inputs)).logits, inputs["labels"])
        outputs = model(**_without_labels(inputs))
        student = _scored(outputs.logits, inputs["labels"])
        targets = inputs["labels"][:, 1:]
        targets = targets[targets != IGNORE]
        next_token = F.cross_entropy(student, targets, reduction="sum")
        kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
        total = (1 - self.weight) * next_token + self.weight * kl
        if num_items_in_batch is None:
            loss = total / len(targets)
        else:  # of all processes, over whose gradients DDP takes the mean
            loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class TransferTrainer(NextTokenTrainer):
    """‖student's attention output - teacher's‖² / ‖teacher's‖², the mean over layers, on the teacher's own inputs.

    One pass: every layer notes its error and hands on what the teacher would have, so that the next one reads the teacher's
    input. The pass goes through the wrapped model, and the loss is its output, so that DDP sees what is trained. (FSDP
    gathers a block's weights for the way back only where the block's output is trained, so `recover` refuses it.)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # a mean, which the Trainer divides by the number of micro-batches

    def train(self, *args, **kwargs):
        model, sums = self.accelerator.unwrap_model(self.model), {}

        def teacher(layer, args, kwargs, output):
            with as_teacher(model):
                return layer.forward(*args, **kwargs)

        def compare(layer, args, kwargs, output):
            target, *rest = teacher(layer, args, kwargs, output)
            mask = kwargs.get("padding_mask")
            real = ... if mask is None else mask.bool()
            difference = output[0][real] - target[real]
            sums[layer] = difference.float().square().sum(), target[real].float().square().sum()
            return target, *rest

        def report(model, args, output):
            errors, targets = (torch.stack(x) for x in zip(*sums.values()))
            return {"loss": (errors / self.accelerator.reduce(targets, "mean")).mean()}  # the batch of all processes

        # until the end: gradient checkpointing calls the layers again on the way back
        attentions = [module for name, module in model.named_modules() if name.endswith(".self_attn")]
        hooks = [  # the blocks that a layer hybrid keeps are the teacher's already, and stay so
            layer.register_forward_hook(compare if isinstance(layer, LigerAttention) else teacher, with_kwargs=True)
            for layer in attentions
        ]
        hooks.append(model.register_forward_hook(report))
        try:
            return super().train(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**_without_labels(inputs), use_cache=False, logits_to_keep=1)  # the loss does not read them
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class WindowDropout(TrainerCallback):
    """Before each step every layer loses its window with probability p_0 (1 - step / steps), for that step.

    The caller restores the branches afterwards (`liger_mini.evaluation.branches`).
    """

    def __init__(self, model: nn.Module, probability: float, seed: int):
        self.layers, self.probability, self.seed = liger_layers(model), probability, seed
        self.branches = [layer.branches for layer in self.layers]

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        dice = random.Random(f"window dropout/{self.seed}/{state.global_step}")  # the same after a resume
        p = self.probability * (1 - state.global_step / state.max_steps)
        for layer, branches in zip(self.layers, self.branches):
            layer.branches = (1.0, 0.0) if dice.random() < p else branches


def _without_labels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in inputs.items() if name != "labels"}


def _scored(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits [N, vocabulary] that predict the scored labels, float32."""
    return logits[:, :-1][labels[:, 1:] != IGNORE].float()
