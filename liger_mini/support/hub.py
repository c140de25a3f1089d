"""Models and tokenizers from a folder, from the hub's cache on this machine, or from the hub."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from liger_mini.support.gguf_files import find_gguf, gguf_tokenizer, load_gguf


def load(path: str | Path, **kwargs) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained` for a local folder or a GGUF file, which says at once if there is none.

    Args:
        path: a folder with a saved model or with one .gguf file, or such a file (`load_gguf`).
        kwargs: passed on to transformers (dtype, device_map, …).
    Raises:
        FileNotFoundError: nothing at `path`. ValueError: a folder that holds no saved model. And what `load_gguf` raises.
    """
    path = Path(path)
    file = find_gguf(path)
    if file is not None:
        return load_gguf(file, **kwargs)
    if not path.is_dir():
        raise FileNotFoundError(f"no model folder at {path}")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ValueError(
            f"{path} holds an adapter, not a model: merge it into its base and save that, "
            f"AutoPeftModelForCausalLM.from_pretrained({str(path)!r}).merge_and_unload().save_pretrained(...)"
        )
    if not (path / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise ValueError(f"{path} is not a saved model: it has no config.json (found: {found})")
    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **kwargs)


def open_model(source: str | Path, **kwargs) -> PreTrainedModel:
    """A model from a local folder or GGUF file, from the hub's cache on this machine, or from the hub.

    Raises:
        FileNotFoundError: neither a folder nor a repository of that name. ConnectionError: the hub is out of reach and
            the model is not in the cache. PermissionError: a gated repository without access.
    """
    name = str(source)
    if (
        Path(source).exists()
        or name.endswith(".gguf")
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        or name.startswith(".")
    ):
        return load(source, **kwargs)
    try:
        return AutoModelForCausalLM.from_pretrained(name, local_files_only=True, **kwargs)
    except OSError:  # not in the cache
        check_access(name)
    return AutoModelForCausalLM.from_pretrained(name, **kwargs)


def open_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or in its GGUF file; one without a pad token pads with its end-of-text token (padding is never scored).

    Raises:
        FileNotFoundError: there is none. ValueError: it has no end-of-text token.
    """
    try:
        file = find_gguf(source)
        if file is not None:
            tokenizer = gguf_tokenizer(file)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=Path(source).exists())
    except (
        OSError,
        ValueError,
        TypeError,
    ) as error:  # transformers raises any of them where a folder holds weights alone
        raise FileNotFoundError(f"{source} has no tokenizer that transformers can read ({error})") from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {source} has no end-of-text token, with which documents and answers end here; set "
            "tokenizer.eos_token and save it with save_pretrained"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_access(repository: str) -> None:
    """Ask the hub whether this machine may read a repository, and say what to do if not."""
    place = f"give a local folder instead, or download it elsewhere with `hf download {repository}` and copy it here"
    try:
        huggingface_hub.auth_check(repository)
    except GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, log in with "
            f"`hf auth login`, and try again; or {place}"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no folder {repository} here and no model {repository} on the hub") from error
    except Exception as error:  # no network, HF_HUB_OFFLINE: the hub's transport errors differ from version to version
        raise ConnectionError(
            f"{repository} is not in this machine's hub cache, and the hub cannot be reached ({error}); {place}"
        ) from error
