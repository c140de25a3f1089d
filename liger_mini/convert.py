"""linearize (chapter 07): swap every softmax attention for Liger Attention, keep every weight.

A linearized model is a transformers model of its own type (`liger_llama`), so `save_pretrained`,
`AutoModelForCausalLM.from_pretrained`, `generate`, PEFT and the Trainer work as on any other.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from liger_mini.attention import IMPLEMENTATION, LigerAttention, prepare_layers
from liger_mini.evaluation.look_back import look_back
from liger_mini.recurrences.dispatch import BACKENDS
from liger_mini.structures import Temper, get_structure, structures
from liger_mini.support.paths import write_atomically

HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
AUTO = dict(
    zip(HEADS, (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification))
)
CODE = "modeling_liger_mini.py"  # in every saved folder, for tools that load one in a process of their own


class LigerModel:
    """What the linearized class of each family adds to the family's own: the swap, at construction.

    Its config is the family's with these fields more:
        liger: the arguments of `linearize`: structure, window, mix, temper, softmax_every, sinks, backend; also own_windows, the
            window of each layer's softmax attention before (None: it saw everything), base, the name of the model it was
            made from, parameters, how many that had, and recovered, once LoRA was merged.
        layer_types, sliding_window, number_of_conv_states: what transformers builds the decode cache from.
    """

    _is_stateful = True  # a state cannot be rolled back: transformers refuses assisted generation and prompt lookup

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        _swap_attention(self)

    def set_attn_implementation(self, attn_implementation, *args, **kwargs):
        if attn_implementation != IMPLEMENTATION:
            raise ValueError(
                f"attn_implementation = {attn_implementation!r}: a linearized model has only {IMPLEMENTATION!r}, also in "
                "the blocks it keeps as softmax attention; another would lose the padding"
            )
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def create_masks_for_generate(self, config, inputs_embeds, attention_mask=None, *args, **kwargs):
        """`generate` hands the mask of tokens on as it is, also to a compiled step; see `prepare_layers`."""
        return attention_mask

    def _prepare_cache_for_generation(self, generation_config, *args, **kwargs):
        if generation_config.is_assistant:
            raise ValueError(
                "a linearized model cannot be the assistant of another: what it proposes has to be taken back where it is "
                "wrong, and a recurrent state cannot; give a softmax model as assistant_model"
            )
        return super()._prepare_cache_for_generation(generation_config, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True) and Path(save_directory).is_dir():
            write_atomically(Path(save_directory) / CODE, _code(type(self.config)))

    @classmethod
    def register_for_auto_class(cls, auto_class=None):
        """transformers would copy this file into saved folders; they hold `CODE`, which imports the package."""


def _code(config_class: type) -> str:
    names = [config_class.__name__, *(f"{_prefix(config_class)}{head}" for head in HEADS)]
    return (
        '"""What transformers reads with trust_remote_code=True: the model itself is in the package liger_mini."""\n\n'
        f"from liger_mini.convert import {', '.join(names)}\n"
    )


def _prefix(config_class: type) -> str:
    return config_class.__name__.removesuffix("Config")


class LigerConfig:
    """What the linearized config of each family adds to the family's own."""

    model_type: str

    @classmethod
    def register_for_auto_class(cls, auto_class=None):
        """As for the models."""


class LigerLlamaConfig(LigerConfig, LlamaConfig):
    model_type = "liger_llama"


class LigerMistralConfig(LigerConfig, MistralConfig):
    model_type = "liger_mistral"


class LigerQwen2Config(LigerConfig, Qwen2Config):
    model_type = "liger_qwen2"


class LigerQwen3Config(LigerConfig, Qwen3Config):
    model_type = "liger_qwen3"


def _register(config_class: type[LigerConfig]) -> dict[type[PreTrainedModel], type[PreTrainedModel]]:
    """Make and register the linearized classes of a family; what each is made from -> what it becomes."""
    _, family = config_class.__bases__
    classes = {}
    AutoConfig.register(config_class.model_type, config_class)
    for head, auto in AUTO.items():
        softmax = auto._model_mapping[family]
        attributes = {
            "config_class": config_class,
            "__module__": __name__,
            "__doc__": f"A linearized {softmax.__name__}.",
        }
        liger = type(f"{_prefix(config_class)}{head}", (LigerModel, softmax), attributes)
        auto.register(config_class, liger)
        globals()[liger.__name__] = classes[softmax] = liger
    return classes


FAMILIES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}


for _family in (LigerLlamaConfig, LigerMistralConfig, LigerQwen2Config, LigerQwen3Config):
    FAMILIES |= _register(_family)


@dataclass(frozen=True)
class Settings:
    """How a model is linearized.

    Attributes:
        structure: a name in `liger_mini.structures`.
        window: keys the softmax branch sees, the current one included; the paper has 64.
        mix: the weight a of the recurrence; the window has 1 - a. Or a pair: the weights a,b of the recurrence and of the
            window. The paper has 0.5.
        temper: half-life of a neutral gate in tokens; None takes the structure's default; "teacher" reads one for each
            layer and key head off the attention of the model itself, on a sample; or these numbers, one list per layer.
            Structures whose gate is not computed from one key (linear, lightning, lightnet, deltanet) have none.
        softmax_every: keep every n-th block as ordinary softmax attention; the paper's "-H" has 8, None keeps none.
        sinks: how many of a text's first tokens every later one sees, beyond the window; the paper has none.
        backend: the form in which the recurrence runs, as in `gated_recurrence`; the environment's LIGER_MINI_BACKEND is above
            it, and a single token is one step of the loop in any case.
    Raises:
        ValueError: one that is outside its range.
    """

    structure: str = "gla"
    window: int = 64
    mix: float | tuple[float, float] = 0.5
    temper: float | Literal["teacher"] | tuple[tuple[float, ...], ...] | None = None
    softmax_every: int | None = None
    sinks: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.temper, (list, tuple)):  # a list once it has been in a JSON file
            if not self.temper or not all(isinstance(layer, (list, tuple)) and layer for layer in self.temper):
                raise ValueError(f"temper = {self.temper!r}: as a list it has one list of half-lives per layer")
            object.__setattr__(self, "temper", tuple(map(tuple, self.temper)))
        for temper in (
            self.temper if isinstance(self.temper, tuple) else (None if self.temper == "teacher" else self.temper,)
        ):
            get_structure(self.structure, temper)
        if not isinstance(self.window, int) or isinstance(self.window, bool) or self.window < 1:
            raise ValueError(f"window = {self.window!r}: allowed are whole numbers ≥ 1 (the current key counts)")
        if isinstance(self.mix, (list, tuple)):
            object.__setattr__(self, "mix", tuple(self.mix))
        _check_mix(self.mix)
        if self.softmax_every is not None and (type(self.softmax_every) is not int or self.softmax_every < 1):
            raise ValueError(f"softmax_every = {self.softmax_every!r}: allowed are whole numbers ≥ 1, or None")
        if type(self.sinks) is not int or self.sinks < 0:
            raise ValueError(f"sinks = {self.sinks!r}: allowed are whole numbers ≥ 0 (the paper has 0)")
        if self.backend not in BACKENDS or (self.backend == "compiled" and self.structure == "gsa"):
            allowed = [name for name in BACKENDS if name != "compiled" or self.structure != "gsa"]
            raise ValueError(
                f"backend = {self.backend!r}: allowed with structure {self.structure!r} are {', '.join(map(repr, allowed))}"
            )

    @property
    def branches(self) -> tuple[float, float]:
        """The weights (a, b) of the recurrence and of the window."""
        return self.mix if isinstance(self.mix, tuple) else (self.mix, 1 - self.mix)

    @classmethod
    def of(cls, liger: dict[str, Any]) -> Settings:
        """Those in a linearized model's `config.liger`."""
        return cls(**{field.name: liger[field.name] for field in fields(cls) if field.name in liger})

    def temper_of(self, layer: int) -> Temper | None:
        """The temper of one layer, once it is told."""
        assert self.temper != "teacher"
        return self.temper[layer] if isinstance(self.temper, tuple) else self.temper

    def explicit(self) -> dict[str, Any]:
        """As a dictionary, the structure's own temper where None stands for it."""
        own = structures[self.structure].temper
        return asdict(self) | {"temper": own if self.temper is None else self.temper}

    def told(self, model: PreTrainedModel, sample: Sequence[Sequence[int]] | Tensor | None) -> Settings:
        """With the numbers that "teacher" stands for.

        Raises:
            ValueError: "teacher" without a sample, a sample without it, or numbers for other layers or heads.
        """
        if (self.temper == "teacher") != (sample is not None):
            raise ValueError(
                f"temper = {self.temper!r} and sample = {'None' if sample is None else 'given'}: the half-lives are read "
                'off the teacher with temper="teacher" and sample=rows of token ids, both or neither'
            )
        if self.temper == "teacher":
            return replace(self, temper=look_back(model, sample))
        heads = model.config.num_hidden_layers * (model.config.num_key_value_heads,)
        if isinstance(self.temper, tuple) and tuple(map(len, self.temper)) != heads:
            raise ValueError(
                f"temper has half-lives for {len(self.temper)} layers of {sorted(set(map(len, self.temper)))} key heads; "
                f"the model has {len(heads)} of {heads[0]}"
            )
        return self


def _check_mix(mix: Any) -> None:
    """A number a in [0, 1], or a pair (a, b) of finite numbers ≥ 0 that are not both 0."""
    numbers = mix if isinstance(mix, tuple) else (mix,)
    fits = all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x < float("inf") for x in numbers)
    if not fits or (not (len(mix) == 2 and any(mix)) if isinstance(mix, tuple) else mix > 1):
        raise ValueError(
            f"mix = {mix!r}: allowed are numbers from 0 (window only) to 1 (recurrence only), or a pair (a, b) of weights of "
            "the recurrence and of the window, finite, ≥ 0 and not both 0"
        )


def linearize(
    model: PreTrainedModel, *given: Any, sample: Sequence[Sequence[int]] | Tensor | None = None, **settings: Any
) -> PreTrainedModel:
    """Turn a pretrained Transformer into a gated linear recurrent model, in place, adding no parameter.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 of any size and float dtype.
        given, settings: the fields of `Settings`, in their order or by name.
        sample: rows of token ids for temper="teacher" (`liger_mini.evaluation.look_back`).
    Returns:
        The same object, its class now the family's Liger class.
    Raises:
        ValueError: a setting outside its range, a model that is linearized already, quantised weights, or a layer
            hybrid of a model whose own attention has a window.
        TypeError: a model of another family.
    """
    asked = Settings(*given, **settings)
    _check_model(model, asked.softmax_every)
    asked = asked.told(model, sample)
    model.config = _config(model, asked)
    model.__class__ = FAMILIES[type(model)]
    for module in model.modules():  # submodules hold the same config object
        if getattr(module, "config", None) is not None:
            module.config = model.config
    model.name_or_path = ""  # the folder it came from holds the softmax model
    if model.can_generate():
        model.generation_config._from_model_config = False
    if asked.structure == "linear" and model.dtype == torch.float16:
        warnings.warn(
            "float16 ends at 65,504, and the ungated recurrence (structure 'linear') sums over the whole text: long texts "
            "overflow to infinity. Use bfloat16 or float32, model.to(torch.bfloat16), or a structure that forgets",
            stacklevel=2,
        )
    _swap_attention(model)
    return model


_model, _, _sample, _ = inspect.signature(linearize).parameters.values()
_settings = inspect.signature(Settings).parameters.values()
vars(linearize)["__signature__"] = inspect.Signature([_model, *_settings, _sample])  # what help() and editors show


def _config(model: PreTrainedModel, settings: Settings) -> LigerConfig:
    """The config of the linearized model."""
    liger = FAMILIES[type(model)]
    config = liger.config_class.from_dict({**model.config.to_dict(), "model_type": liger.config_class.model_type})
    config.liger = {
        **json.loads(json.dumps(asdict(settings))),  # as it is once it was saved
        "own_windows": _own_windows(model.config),
        "base": model.name_or_path,
        "parameters": model.num_parameters(),
    }
    config.sliding_window = settings.window
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = True  # Qwen drops sliding_window without it
    # transformers' one number for both kinds of state
    config.number_of_conv_states = get_structure(settings.structure).states
    every = settings.softmax_every
    config.layer_types = [
        "full_attention" if every and (i + 1) % every == 0 else "hybrid_sliding"
        for i in range(config.num_hidden_layers)
    ]
    config.architectures = [liger.__name__]
    prefix, module = _prefix(liger.config_class), CODE.removesuffix(".py")
    config.auto_map = {"AutoConfig": f"{module}.{prefix}Config"} | {
        auto.__name__: f"{module}.{prefix}{head}" for head, auto in AUTO.items()
    }
    config._name_or_path = ""
    return config


def _swap_attention(model: PreTrainedModel) -> None:
    """Replace self_attn in every "hybrid_sliding" layer; its projections move over as they are."""
    config, decoder = model.config, model.base_model
    config._attn_implementation = IMPLEMENTATION
    if any(isinstance(layer.self_attn, LigerAttention) for layer in decoder.layers):
        return  # transformers made the decoder of a classifier by its config: it is ours already
    decoder.register_forward_pre_hook(prepare_layers, with_kwargs=True)
    settings = Settings.of(config.liger)
    own_windows = config.liger.get("own_windows", [None] * config.num_hidden_layers)  # older folders lack it
    for layer, layer_type, own in zip(decoder.layers, config.layer_types, own_windows):
        if layer_type == "hybrid_sliding":
            layer.self_attn = LigerAttention(layer.self_attn, settings, own_window=own)


def _own_windows(config) -> list[int | None]:
    """The sliding window of each layer of a model that is not linearized yet, as its family reads its config."""
    window, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    if isinstance(config, LlamaConfig):  # it has no window, whatever else its config says
        window = None
    return [window if layer_type == "sliding_attention" else None for layer_type in types]


def refuse_adapters(model: torch.nn.Module, loses: str) -> None:
    """Raise where PEFT has put something into a model, which what follows `loses`.

    Raises:
        TypeError: it has.
    """
    names: list[str] = []
    for module in model.modules():
        if type(module).__module__.partition(".")[0] == "peft":
            active = getattr(module, "active_adapters", None) or getattr(module, "active_adapter", None) or []
            names += [active] if isinstance(active, str) else active
            names += [] if active else [type(module).__name__]
    if names:
        raise TypeError(
            f"the model carries PEFT's {', '.join(map(repr, dict.fromkeys(names)))}, which {loses}; merge what was trained "
            "first: model.save_pretrained(folder) writes it, and PeftModel.from_pretrained(the model without it, "
            "folder).merge_and_unload() merges it"
        )


def _check_model(model: PreTrainedModel, softmax_every: int | None) -> None:
    if isinstance(model, LigerModel):
        raise ValueError("this model is linearized already; load the original to linearize it in another way")
    refuse_adapters(model, "linearizing would lose")
    if type(model) not in FAMILIES:
        modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        reason = ""
        if not getattr(model, "can_generate", bool)():
            reason = ": it is no causal language model, and a recurrence runs from left to right"
        elif "k_proj" not in modules:
            reason = ": it has no k_proj of its own (a fused qkv), and the gate is read off the key"
        allowed = ", ".join(family.__name__ for family in FAMILIES if family.__name__.endswith("CausalLM"))
        raise TypeError(f"cannot linearize a {type(model).__name__}{reason}. Allowed are {allowed}")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"the weights are quantised ({type(model.hf_quantizer).__name__}), and LoRA could not be merged into them "
            "exactly; load the model without quantization_config, or call model.dequantize() first"
        )
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj")) and type(module) is not torch.nn.Linear:
            raise TypeError(
                f"{name} is a {type(module).__name__}, not the torch.nn.Linear that the checkpoint holds: something was put "
                "around it. Undo that, or load the model again"
            )
    own_windows = [window for window in _own_windows(model.config) if window]
    if softmax_every and own_windows:
        raise ValueError(
            f"softmax_every = {softmax_every} keeps blocks as they are, but this model's own attention has a window of "
            f"{own_windows[0]} tokens, which the kept blocks would lose; leave softmax_every out"
        )
