"""Hidden states of any torch module, by forward hooks: read by ``capture``, replaced by ``patched``."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ApportionError, InvalidInput, UnknownName, nearest

Hook = Callable[[nn.Module, Any, Any], Any]

_MODEL_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class _Stop(Exception):
    """Raised by the last hook: what comes after it in the model is not needed."""


def resolve_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at ``path``. Raises ``UnknownName`` naming the nearest paths."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if path not in modules or path == "":
        known = nearest(path, (name for name in modules if name))
        raise UnknownName(f"{type(model).__name__} has no module {path!r}; nearest: {known}")
    return modules[path]


def capture(model: nn.Module, modules: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hidden states in one forward pass, which ends as soon as the last of ``modules`` has run.

    Args:
        modules: paths of submodules; of one that runs several times, the first run counts.
        inputs: keyword arguments of ``model``, such as ``input_ids`` or ``pixel_values``.

    Returns: [batch, positions, width] for each path, without gradient. The model keeps its mode and no hook.

    Raises: ``UnknownName`` for a path that is not there, ``InvalidInput`` for a module that never runs or
    whose output is not a hidden state, and for inputs that the model cannot run on.
    """
    if not modules:
        raise InvalidInput("no module to capture was named; give at least one module path")
    found: dict[str, Tensor] = {}
    wanted = len(set(modules))

    def hook_for(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if path in found:
                return
            hidden = _hidden(output, path)
            # What runs later may write into the tensor; after the last one nothing runs.
            found[path] = hidden if len(found) + 1 == wanted else hidden.clone()
            if len(found) == wanted:
                raise _Stop

        return hook

    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(modules):
            stack.enter_context(_hooked(resolve_module(model, path), hook_for(path)))
        stack.enter_context(torch.no_grad())
        try:
            model(**inputs)
        except _Stop:
            pass
        except _MODEL_ERRORS as error:
            if isinstance(error, ApportionError) or _out_of_memory(error):
                raise
            raise InvalidInput(
                f"{type(model).__name__} cannot run on inputs {_shapes(inputs)} ({first_line(error)}); give it "
                "what it was made for, or a shorter context"
            ) from error
    missing = [path for path in modules if path not in found]
    if missing:
        raise InvalidInput(
            f"module {missing[0]!r} never ran in the forward pass of {type(model).__name__}; choose one that does"
        )
    return found


@contextlib.contextmanager
def patched(model: nn.Module, module: str, fn: Callable[[Tensor], Tensor]) -> Iterator[nn.Module]:
    """Within the context, the hidden state of ``module`` is replaced by ``fn`` of it.

    What else the module returns stays as it is; an identity ``fn`` leaves the model's output equal to the
    bit. Of a module that runs several times in a forward pass of ``model``, the first run is changed, which is
    the one that ``capture`` reads. Only forward passes of the thread that entered the context are changed.

    Raises: ``UnknownName`` for a path that is not there; ``InvalidInput``, from the forward pass, if the
    output is not a hidden state or ``fn`` changes its shape.
    """

    owner = threading.get_ident()
    done = False

    def begin(root: nn.Module, args: Any) -> None:
        nonlocal done
        if threading.get_ident() == owner:
            done = False

    def hook(layer: nn.Module, args: Any, output: Any) -> Any:
        nonlocal done
        if done:
            return None
        done = True
        hidden = _hidden(output, module)
        replacement = fn(hidden)
        if replacement.shape != hidden.shape:
            raise InvalidInput(
                f"the replacement of {module!r} has shape {tuple(replacement.shape)}; expected that of "
                f"the hidden state, {tuple(hidden.shape)}: return a tensor of the same shape"
            )
        return _replace(output, hidden, replacement)

    layer = resolve_module(model, module)
    handle = model.register_forward_pre_hook(begin)
    try:
        with _hooked(layer, hook):
            yield model
    finally:
        handle.remove()


def keep_mask(
    inputs: Mapping[str, Tensor], special_ids: Iterable[int] = (), like: Tensor | None = None
) -> Tensor:
    """Which positions to keep: attention is on and the token is no special one.

    Args:
        inputs: what the model was fed.
        special_ids: token ids to leave out.
        like: [batch, positions, ...]; without ids and mask in ``inputs``, all its positions are kept.

    Returns: [batch, positions] bool.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is not None:
        keep = ~torch.isin(ids, torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device))
        return keep if mask is None else keep & mask.bool()
    if mask is not None:
        return mask.bool()
    if like is None:
        raise InvalidInput(
            f"inputs {sorted(inputs)} do not tell the number of positions; pass the hidden state as `like`"
        )
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


def first_line(error: BaseException) -> str:
    """What a foreign error says, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError for it.
    words = ("not enough memory", "allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)


def _shapes(inputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in inputs.items())


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Hook) -> Iterator[None]:
    # A source that captures in its own thread may share the model with an evaluation in this one.
    owner = threading.get_ident()

    def own(layer: nn.Module, args: Any, output: Any) -> Any:
        return hook(layer, args, output) if threading.get_ident() == owner else None

    handle = module.register_forward_hook(own)
    try:
        yield
    finally:
        handle.remove()


def _parts(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    if dataclasses.is_dataclass(output):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    return [output]


def _hidden(output: Any, path: str) -> Tensor:
    """The first tensor of a module's output, which must be a hidden state."""
    first = next((part for part in _parts(output) if isinstance(part, Tensor)), None)
    if first is None or first.ndim != 3 or not first.is_floating_point():
        seen = type(output).__name__ if first is None else f"a {first.dtype} tensor of shape {tuple(first.shape)}"
        raise InvalidInput(
            f"module {path!r} returns {seen}, which is no hidden state; expected a floating tensor "
            "[batch, positions, width]: choose a layer or block of the model"
        )
    return first


def _replace(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with the tensor ``old`` replaced, in the same structure."""
    if isinstance(output, Mapping):
        return type(output)(**{key: new if value is old else value for key, value in output.items()})
    if isinstance(output, (tuple, list)):
        parts = [new if part is old else part for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        return dataclasses.replace(output, **{k: new for k, v in names.items() if v is old})
    return new
