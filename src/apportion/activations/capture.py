"""Hidden states of any torch module, by hooks: read by ``capture``, replaced by ``patched``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ApportionError, InvalidInput
from .sites import Site, find_site
from .states import Shapes, shapes_of, state_of, with_tensor

Hook = Callable[[Any], Any]
"""Sees what a module returned, or its arguments (a tuple and keyword arguments), and may return others."""

_MODEL_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ImportError, ArithmeticError),
)


class _Stop(Exception):
    """Raised by the last hook: what comes after it in the model is not needed."""


class _Outside(BaseException):
    """Carries an error of the function that replaces a state through the model, which is not to blame for it."""


def capture(model: nn.Module, modules: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hidden states in one forward pass, which ends as soon as the last of ``modules`` has run.

    Args:
        modules: places in the model, named as ``sites`` says: paths of submodules for what they return,
            ``PATH:input`` for what they read. Of a module that runs several times, the first run counts.
        inputs: keyword arguments of ``model``, such as ``input_ids`` or ``pixel_values``.

    Returns: [batch, positions, width] for each place, without gradient. The model keeps its mode and no hook.

    Raises: ``UnknownName`` for a place that is not there, ``InvalidInput`` for a module that never runs or
    whose output is not a hidden state, and for inputs that the model cannot run on.
    """
    if not modules:
        raise InvalidInput("no module to capture was named; give at least one module path")
    found: dict[str, Tensor] = {}
    wanted = len(set(modules))
    shapes = shapes_of(inputs.values())

    def hook_for(site: Site) -> Hook:
        def hook(value: Any) -> None:
            if site.name in found:
                return
            state = state_of(site, value, shapes).part
            # What runs later may write into the tensor; after the last one nothing runs.
            found[site.name] = state if len(found) + 1 == wanted else state.clone()
            if len(found) == wanted:
                raise _Stop

        return hook

    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(modules):
            site = find_site(model, name)
            stack.enter_context(_hooked(site, hook_for(site)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(contextlib.suppress(_Stop))
        run(model, inputs)
    missing = [path for path in modules if path not in found]
    if missing:
        raise InvalidInput(
            f"module {missing[0]!r} never ran in the forward pass of {type(model).__name__}; choose one that does"
        )
    return found


def run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What ``model`` returns for ``inputs``, its keyword arguments.

    Raises: ``InvalidInput`` for inputs that it cannot run on. A lack of memory stays what it is.
    """
    try:
        return model(**inputs)
    except _MODEL_ERRORS as error:
        if isinstance(error, ApportionError) or _out_of_memory(error):
            raise
        raise InvalidInput(
            f"{type(model).__name__} cannot run on inputs {_shapes(inputs)} ({first_line(error)}); give it "
            "what it was made for, or a shorter context"
        ) from error


@contextlib.contextmanager
def patched(model: nn.Module, module: str, fn: Callable[[Tensor], Tensor]) -> Iterator[nn.Module]:
    """Within the context, the hidden state at ``module`` is replaced by ``fn`` of it.

    What else the module returns or reads stays as it is; an identity ``fn`` leaves the model's output equal to
    the bit. Of a module that runs several times in a forward pass of ``model``, the first run is changed, which
    is the one that ``capture`` reads. Only forward passes of the thread that entered the context are changed.

    Args:
        module: a place in the model, as for ``capture``.

    Raises: ``UnknownName`` for a place that is not there; ``InvalidInput``, from the forward pass, if there is
    no hidden state or ``fn`` changes its shape.
    """
    owner = threading.get_ident()
    site = find_site(model, module)
    done = False
    shapes: Shapes = ()

    def begin(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal done, shapes
        if threading.get_ident() == owner:
            done, shapes = False, shapes_of([*args, *kwargs.values()])

    def hook(value: Any) -> Any:
        nonlocal done
        if done:
            return None
        done = True
        state = state_of(site, value, shapes)
        try:
            replacement = fn(state.part)
        except Exception as error:
            raise _Outside from error
        return with_tensor(value, state.raw, state.replaced(replacement))

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with _hooked(site, hook):
            yield model
    except _Outside as carrier:
        cause = carrier.__cause__
        assert cause is not None
        raise cause from None
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
def _hooked(site: Site, hook: Hook) -> Iterator[None]:
    # A source that captures in its own thread may share the model with an evaluation in this one.
    owner = threading.get_ident()

    def after(layer: nn.Module, args: Any, output: Any) -> Any:
        return hook(output) if threading.get_ident() == owner else None

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != owner:
            return None
        # The state is the first argument, by place or else by name.
        if any(isinstance(arg, Tensor) for arg in args):
            changed = hook(args)
            return None if changed is None else (changed, kwargs)
        changed = hook(kwargs)
        return None if changed is None else (args, changed)

    if site.of_input:
        handle = site.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = site.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
