"""Models and their tokenizers, by hub id, local folder, GGUF file or as installed with a Python package."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ApportionError, InvalidConfig, InvalidInput, MissingExtra, UnknownName
from .capture import first_line
from .places import Place, locate, model_note, nearest_models

_CAUSAL = ("ForCausalLM", "LMHeadModel")


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
    def note(self) -> str:
        """What a table with figures of this model has to say of it; empty for most."""
        return model_note(self.name)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> LoadedModel:
        """The same model, moved to ``device``. Raises ``InvalidConfig`` for one that is not here."""
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InvalidConfig(
                f"device {str(device)!r} cannot be used ({first_line(error)}); choose one of this machine, "
                "such as cpu or cuda"
            ) from None
        return replace(self, model=self.model.to(device))


def load_model(name: str) -> LoadedModel:
    """Load the model ``name``: a folder, a GGUF file, a hub id, or a key of ``places.INSTALLED``.

    Never runs code from the hub. The weights of a GGUF file are dequantised.

    Raises: ``UnknownName`` naming the nearest ones, ``InvalidInput`` for a model whose weights are not all
    there or whose GGUF file holds what transformers cannot read, ``MissingExtra`` without transformers or
    the package of an installed model.
    """
    transformers = _transformers()
    place = locate(name)
    with _quiet(transformers):
        try:
            model, causal = _load(transformers, name, place)
        except ApportionError:
            raise
        except Exception as error:  # transformers, the hub and httpx raise their own families
            raise _unreadable(name, place, error) from None
        tokenizer = _load_tokenizer(transformers, place)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, name, causal)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model ``name`` alone, None if it comes without one. Raises as ``load_model`` does."""
    transformers = _transformers()
    place = locate(name)
    with _quiet(transformers):
        return _load_tokenizer(transformers, place)


def _load(transformers: Any, name: str, place: Place) -> tuple[nn.Module, bool]:
    """The model, and whether it predicts next tokens."""
    config = transformers.AutoConfig.from_pretrained(place.source, **place.options)
    causal = _is_causal(transformers, config, place)
    kind: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    # The type is explicit, because the default is the one that the file was stored in. Weights that are missing
    # or of another size would be filled at random.
    model, report = kind.from_pretrained(
        place.source,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **place.options,
    )
    _check_whole(name, report)
    return model, causal


def _is_causal(transformers: Any, config: Any, place: Place) -> bool:
    if place.gguf is not None:  # which names no class; encoders are not read from this format
        return type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return any(architecture.endswith(_CAUSAL) for architecture in config.architectures or ())


def _unreadable(name: str, place: Place, error: Exception) -> ApportionError:
    reason = first_line(error)
    if place.gguf is None:
        return UnknownName(f"cannot load the model {name!r} ({reason}); nearest known: {nearest_models(name)}")
    if isinstance(error, ImportError):
        return MissingExtra(f"reading {name!r} needs gguf and accelerate ({reason}); install apportion[capture]")
    return InvalidInput(
        f"the GGUF file {name!r} cannot be read by transformers ({reason}); give a whole file of an architecture "
        "that it knows, or the model as safetensors"
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtra("loading a model needs transformers; install apportion[capture]") from None
    return transformers


def _check_whole(name: str, report: Mapping[str, Any]) -> None:
    """Refuse a model of which some weights are random; a pooler, which many lack, gives no hidden state."""
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key.split("."))
    # An entry is (key, shape in the file, shape in the model).
    unfit = sorted(str(entry if isinstance(entry, str) else entry[0]) for entry in report["mismatched_keys"])
    for keys, fault in ((missing, "lacks"), (unfit, "has the wrong size of")):
        if keys:
            raise InvalidInput(
                f"the file of the model {name!r} {fault} {len(keys)} of its weights (the first is {keys[0]!r}), "
                "which would be random; get the whole model, or correct its config.json"
            )


def _load_tokenizer(transformers: Any, place: Place) -> Any:
    # A vision model has none, and transformers raises one of several errors for that.
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place.source, **place.options)
    except BaseException as error:  # tokenizers raise their own family, and their Rust part panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return None
    # Without files, transformers makes up one that knows nothing but special tokens.
    return tokenizer if len(tokenizer) > len(set(tokenizer.all_special_ids)) else None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's own progress bars and reports off, and leave its settings as they were."""
    logging = transformers.utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    # The bar of GGUF files heeds no setting.
    gguf: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = gguf.tqdm
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    gguf.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = bar
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
