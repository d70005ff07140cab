"""The hidden state among all that a module reads or returns, and how another is put in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import InvalidInput
from .sites import Site

Shapes = Sequence[tuple[int, int]]
"""Batch and positions of what the model was fed, each way that it may be read."""


def shapes_of(inputs: Iterable[Any]) -> Shapes:
    """[batch, positions] of all inputs that have positions: ids, masks and embeddings, but no pixels."""
    tensors = (value for value in inputs if isinstance(value, Tensor) and value.ndim in (2, 3))
    return list(dict.fromkeys((tensor.shape[0], tensor.shape[1]) for tensor in tensors))


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """A hidden state, in the form that the module has it and as [batch, positions, width].

    Attributes:
        raw: the tensor itself.
        whole: the same numbers, [batch, positions, width].
        part: those of them that the site means: all, or one head's.
    """

    site: Site
    raw: Tensor
    whole: Tensor
    part: Tensor

    def replaced(self, part: Tensor) -> Tensor:
        """``raw`` with ``part`` in place of this one's.

        Raises: ``InvalidInput`` for another shape.
        """
        if part.shape != self.part.shape:
            raise InvalidInput(
                f"the replacement of {self.site.name!r} has shape {tuple(part.shape)}; expected that of "
                f"the hidden state, {tuple(self.part.shape)}: return a tensor of the same shape"
            )
        if self.site.head is None:
            return part.reshape(self.raw.shape)
        whole = self.whole.clone()
        self.site.part(whole).copy_(part)
        return whole.reshape(self.raw.shape)


def state_of(site: Site, value: Any, shapes: Shapes) -> State:
    """The first tensor of ``value``, which must be a hidden state.

    Some modules, such as the experts of a mixture and OPT's MLP, see the positions of all contexts in one row:
    a tensor [batch · positions, width] is one, if ``shapes`` has that batch and those positions.

    Args:
        value: what a module returned, or its arguments.

    Raises: ``InvalidInput`` if it is none.
    """
    raw = next((part for part in _parts(value) if isinstance(part, Tensor)), None)
    if raw is not None and raw.is_floating_point():
        if raw.ndim == 3:
            return State(site, raw, raw, site.part(raw))
        shape = next((shape for shape in shapes if raw.ndim == 2 and len(raw) == shape[0] * shape[1]), None)
        if shape is not None:
            whole = raw.unflatten(0, shape)
            return State(site, raw, whole, site.part(whole))
    seen = type(value).__name__ if raw is None else f"a {raw.dtype} tensor of shape {tuple(raw.shape)}"
    does = "reads" if site.of_input else "returns"
    raise InvalidInput(
        f"module {site.path!r} {does} {seen}, which is no hidden state; expected a floating tensor "
        "[batch, positions, width]: choose a layer or block of the model"
    )


def with_tensor(value: Any, old: Tensor, new: Tensor) -> Any:
    """``value`` with the tensor ``old`` replaced, in the same structure."""
    if isinstance(value, Mapping):
        changed = {key: new if part is old else part for key, part in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, (tuple, list)):
        parts = [new if part is old else part for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{k: new for k, v in names.items() if v is old})
    return new


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [value]
