"""LoRA adapters for linearized models: they go on those, and on nothing else (chapter 08)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    LoraConfig,
    LoraModel,
)
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn
from transformers import (
    PreTrainedModel,
)

from liger_mini.support.paths import write_atomically


class AdapterType(StrEnum):
    """The kind of adapter that PEFT reads in adapter_config.json; its own kinds are in an Enum that cannot grow."""

    LIGER_LORA = "LIGER_LORA"


@dataclass
class LigerLoraConfig(LoraConfig):
    """LoRA that was trained on a linearized model.

    PEFT puts an adapter on any model whose layers have the right names, and a softmax model has the names of its linearized
    self. In a LoraConfig nothing is compared with the model: a field that PEFT does not know is dropped with a warning about
    versions, `auto_mapping` is read by AutoPeftModel alone, and a module of `modules_to_save` may be missing. A kind of
    adapter is what PEFT lets a package define, and it calls that kind's model class first. So this is LoRA in all but its
    name: on a softmax model it is refused, and where liger_mini was not imported PEFT does not know the name. Adapters
    that older versions saved are plain LoRA, and are loaded as such.

    Attributes:
        liger: how the model was linearized (`model.config.liger`).
    """

    liger: dict[str, Any] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = AdapterType.LIGER_LORA


class LigerLoraModel(LoraModel):
    """PEFT's LoraModel, for linearized models alone."""

    def _pre_injection_hook(self, model: nn.Module, config: LigerLoraConfig, adapter_name: str) -> None:
        here, there = getattr(model.config, "liger", None), config.liger or {}
        if here is None:
            raise TypeError(
                f"{type(model).__name__} is not linearized, and this adapter was trained on a linearized model; make it that "
                f"first: liger_mini.linearize(model, {_arguments(there)})"
            )
        told = [f"{name}: there {before}, here {now}" for name, before, now in changes(there, here)]
        if told:
            warnings.warn(
                f"this adapter was trained on a model that was linearized in another way ({'; '.join(told)}): expect other "
                "numbers than its recovery had",
                stacklevel=2,
            )
        super()._pre_injection_hook(model, config, adapter_name)


PEFT_TYPE_TO_CONFIG_MAPPING[AdapterType.LIGER_LORA] = LigerLoraConfig


PEFT_TYPE_TO_TUNER_MAPPING[AdapterType.LIGER_LORA] = LigerLoraModel


PEFT_TYPE_TO_PREFIX_MAPPING[AdapterType.LIGER_LORA] = LoraModel.prefix


def _arguments(liger: dict[str, Any]) -> str:
    """The settings of a linearized model as arguments of `linearize`."""
    settings = {name: x for name, x in liger.items() if name not in ELSEWHERE | {"recovered"} and x is not None}
    return ", ".join(f"{name}={x!r}" for name, x in settings.items())


def name_base(adapter: Path, model: PreTrainedModel) -> None:
    """Write into an adapter's folder which model it belongs to, and in README.md how to load it there.

    Afterwards, as PEFT asks the hub about a base that it knows whenever it saves.
    """
    liger, base = model.config.liger, model.name_or_path or None  # the folder of a linearized model, or unknown
    how = f'model = lm.load("{base}")'
    if base is None:
        base = None if liger.get("recovered") else liger.get("base") or None
        how = f'model = lm.linearize(AutoModelForCausalLM.from_pretrained("{base or "its base"}"), {_arguments(liger)})'
    config = LigerLoraConfig.from_pretrained(adapter)
    config.base_model_name_or_path = base
    config.save_pretrained(adapter)
    earlier = " (after an earlier recovery, which has to be merged first)" if liger.get("recovered") else ""
    write_atomically(
        adapter / "README.md",
        f"""---
library_name: peft
tags: [liger_mini, lora]
---
# A LoRA adapter for a linearized model

This adapter was trained by liger_mini on {f"`{base}`" if base else "a model"} with its attention linearized{earlier}, and belongs on that model
alone: on softmax attention it is refused. Load the model, linearized, and put the adapter on it:

```python
import liger_mini as lm
from peft import PeftModel
from transformers import AutoModelForCausalLM

{how}
model = PeftModel.from_pretrained(model, "this folder").eval()
```
""",
    )


def changes(there: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, there, here) of the settings that differ; what an older version did not know yet was off (None, 0, False)."""
    for name in sorted((there.keys() | here.keys()) - ELSEWHERE):
        before, now = there.get(name), here.get(name)
        if (before or None) != (now or None):
            yield name, before, now


# what follows from the model that was linearized, and the form in which it runs: neither is how it was linearized
ELSEWHERE = {"base", "parameters", "own_windows", "backend"}
LORA_TARGETS = ["q_proj", "k_proj", "v_proj"]  # PEFT's default for Llama leaves out k_proj, which here is the gate


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT still asks transformers for a property under its old name, and every reader would see that warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
