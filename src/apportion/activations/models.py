"""Models and their tokenizers, by hub id, local folder, GGUF file or as installed with a Python package."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..device import usable_device
from ..errors import ApportionError, InvalidConfig, InvalidInput, MissingExtra, UnknownName
from .capture import first_line, run
from .places import Place, locate, model_note, nearest_models
from .precision import check_device_map, check_dtype, loaded_dtype

_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is only read: in eval mode, as dropout would put noise into every state.

    Attributes:
        tokenizer: a transformers tokenizer, or None for a model that comes without one.
        name: as given to ``load_model``.
        causal: whether the model predicts next tokens (its output has ``logits``).
        device_map: how it was spread over several devices, None if it was not.

    Raises: ``InvalidInput`` for a model in training mode.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    causal: bool
    device_map: str | None = None

    def __post_init__(self) -> None:
        self.check_mode()

    @property
    def note(self) -> str:
        """What a table with figures of this model has to say of it; empty for most."""
        return model_note(self.name)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are; of one that is spread, where the first ones are."""
        # Parameters that accelerate keeps elsewhere until they are used are on "meta".
        here = (p.device for p in self.model.parameters() if p.device.type != "meta")
        return next(here, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's parameters, the most common one where there are several."""
        counts: Counter[torch.dtype] = Counter()
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                counts[parameter.dtype] += parameter.numel()
        return counts.most_common(1)[0][0] if counts else torch.float32

    def to(self, device: str | torch.device) -> LoadedModel:
        """The same model, moved to ``device``.

        Raises: ``InvalidConfig`` for one that is not here or lacks the model's dtype, and for a model that is
            spread over several.
        """
        if self.device_map is not None:
            raise InvalidConfig(
                f"the model {self.name!r} is spread over devices by the map {self.device_map!r} and cannot move "
                f"to {str(device)!r}; leave one of the two out"
            )
        place = usable_device(device)
        check_dtype(self.dtype, place)
        return replace(self, model=self.model.to(place))

    def check_mode(self) -> None:
        """Refuse a model in training mode, of which any part may be. Raises ``InvalidInput``."""
        learning = next((name for name, part in self.model.named_modules() if part.training), None)
        if learning is not None:
            where = f"its module {learning!r} is" if learning else "it is"
            raise InvalidInput(
                f"the model {self.name!r} would give other states at each pass, since {where} in training mode; "
                "call `.eval()` on it"
            )

    def output(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the model makes of contexts [c, L], on whatever device that ends on.

        Returns: logits [c, L, vocabulary] if it is causal, else the last hidden state [c, L, d], which of an
            encoder-decoder is the encoder's.

        Raises: ``InvalidInput`` for inputs that it cannot run on, or if there is no such output.
        """
        self.check_mode()
        reader: Any = self.model
        config = getattr(reader, "config", None)
        if not self.causal and getattr(config, "is_encoder_decoder", False):
            reader = reader.get_encoder()
        kind = "logits" if self.causal else "last_hidden_state"
        found = getattr(run(reader, inputs), kind, None)
        shape = inputs["input_ids"].shape if "input_ids" in inputs else None
        if not isinstance(found, Tensor) or found.ndim != 3 or (shape and found.shape[:2] != shape):
            seen = f"{kind} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"no {kind}"
            raise InvalidInput(
                f"the output of the model {self.name!r} ({type(reader).__name__}) has {seen}; expected one for "
                f"each position of {tuple(shape or ())}: leave the model out, or load one that is "
                f"{'an encoder' if self.causal else 'a language model'}"
            )
        return found

    def output_bytes(self, positions: int) -> int:
        """Bytes of the logits of so many positions; 0 where nothing tells the size of the vocabulary."""
        words = getattr(getattr(self._unembedding(), "weight", None), "shape", (0,))[0] if self.causal else 0
        return int(positions * words * self.dtype.itemsize)

    def _unembedding(self) -> Any:
        try:
            return cast(Any, self.model).get_output_embeddings()
        except (AttributeError, NotImplementedError):
            return None


def load_model(name: str, *, dtype: str = "auto", device_map: str | None = None) -> LoadedModel:
    """Load the model ``name``: a folder, a GGUF file, a hub id, or a key of ``places.INSTALLED``.

    Never runs code from the hub. The weights of a GGUF file are dequantised.

    Args:
        dtype: of the weights: one of ``precision.ModelDtype``.
        device_map: one of ``precision.DeviceMap``, or None for one device.

    Raises: ``UnknownName`` naming the nearest ones, ``InvalidInput`` for a model whose weights are not all
    there or whose GGUF file holds what transformers cannot read, ``InvalidConfig`` for an unknown or useless
    ``dtype`` or ``device_map``, ``MissingExtra`` without transformers, accelerate for a device map, or the
    package of an installed model.
    """
    check_device_map(device_map)
    transformers = _transformers()
    place = locate(name)
    with _quiet(transformers):
        try:
            model, causal = _load(transformers, name, place, dtype, device_map)
        except ApportionError:
            raise
        except Exception as error:  # transformers, the hub and httpx raise their own families
            raise _unreadable(name, place, error) from None
        tokenizer = _load_tokenizer(transformers, place)
    loaded = LoadedModel(model.eval().requires_grad_(False), tokenizer, name, causal, device_map)
    check_dtype(loaded.dtype, loaded.device)
    return loaded


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model ``name`` alone, None if it comes without one. Raises as ``load_model`` does."""
    transformers = _transformers()
    place = locate(name)
    with _quiet(transformers):
        return _load_tokenizer(transformers, place)


def _load(
    transformers: Any, name: str, place: Place, dtype: str, device_map: str | None
) -> tuple[nn.Module, bool]:
    """The model, and whether it predicts next tokens."""
    config = transformers.AutoConfig.from_pretrained(place.source, **place.options)
    # A file may name an implementation that transformers would fetch from the hub and run.
    config._attn_implementation = config._experts_implementation = None
    kind, causal = _kind(transformers, config, place)
    # The type is explicit, because the default is the one that the file was stored in. Weights that are missing
    # or of another size would be filled at random.
    model, report = kind.from_pretrained(
        place.source,
        config=config,
        dtype=loaded_dtype(dtype, kind, config, place),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **place.options,
        **({} if device_map is None else {"device_map": device_map}),
    )
    _check_whole(name, report)
    for part in (model.config, model.config.get_text_config()):
        part.use_cache = False  # keys and values of all layers, which nobody reads
    return model, causal


def _kind(transformers: Any, config: Any, place: Place) -> tuple[Any, bool]:
    """The class that reads all that is wanted of a file, and whether that predicts next tokens."""
    names = config.architectures or ()
    text = config.get_text_config()
    decoder_only = not (config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False))
    # A GGUF file names no class, and encoders are not read from this format.
    named = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING if place.gguf is not None else False
    if named or any(architecture.endswith(_CAUSAL) for architecture in names):
        return transformers.AutoModelForCausalLM, True
    # Whoever reads text beside pictures or sound ends otherwise, and can be asked whether it writes.
    for own in (getattr(transformers, architecture, None) for architecture in names):
        if decoder_only and own is not None and own.can_generate():
            return own, True
    return transformers.AutoModel, False


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
