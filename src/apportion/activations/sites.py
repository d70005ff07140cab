"""Where in a model a state is read or replaced, and how that place is named.

- ``PATH`` is the output of the submodule at PATH: ``model.layers.12``, ``model.layers.12.mlp``;
- ``PATH:input`` is what that submodule reads. The input of an attention's output projection, as in
  ``model.layers.12.self_attn.o_proj:input``, is all of its heads side by side, before they are mixed;
- ``PATH:input.head=3`` is the part of that input which the fourth head made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import InvalidInput, UnknownName, nearest


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a model.

    Attributes:
        name: as it was given.
        path, module: the submodule.
        of_input: whether the state is what the submodule reads, and not what it returns.
        head: number of one attention head of the state; None for all of it.
        heads: how many there are, 1 without ``head``.
    """

    name: str
    path: str
    module: nn.Module
    of_input: bool = False
    head: int | None = None
    heads: int = 1

    def part(self, state: Tensor) -> Tensor:
        """What of a state [batch, positions, width] is meant, a view of it.

        Raises: ``InvalidInput`` for a width that the heads do not divide.
        """
        if self.head is None:
            return state
        width = state.shape[-1]
        if width % self.heads:
            raise InvalidInput(
                f"the input of {self.path!r} has width {width}, which {self.heads} heads do not divide; name the "
                "projection that mixes the heads, or the whole input"
            )
        by_head: Tensor = state.unflatten(-1, (self.heads, width // self.heads))
        return by_head[..., self.head, :]


def find_site(model: nn.Module, name: str) -> Site:
    """The place that ``name`` names.

    Raises: ``UnknownName`` naming the nearest, ``InvalidInput`` for a head of a model that names no number of
    heads.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name and name in modules:
        return Site(name, name, modules[name])
    path, colon, part = name.rpartition(":")
    if not path or path not in modules:
        asked, end = (path, colon + part) if path else (name, "")
        known = nearest(asked + end, (found + end for found in modules if found))
        raise UnknownName(f"{type(model).__name__} has no module {asked!r}; nearest: {known}")
    if part == "input":
        return Site(name, path, modules[path], of_input=True)
    head = re.fullmatch(r"input\.head=(\d{1,6})", part)
    if head is None:
        known = nearest(name, (path, f"{path}:input", f"{path}:input.head=0"))
        raise UnknownName(f"{type(model).__name__} has no site {name!r}; nearest: {known}")
    heads = _heads(modules, path)
    if int(head[1]) >= heads:
        raise UnknownName(
            f"{path!r} has {heads} heads and no head {head[1]}; nearest: '{path}:input.head={heads - 1}'"
        )
    return Site(name, path, modules[path], True, int(head[1]), heads)


def _heads(modules: dict[str, nn.Module], path: str) -> int:
    """How many attention heads the config nearest to the submodule at ``path`` tells of."""
    at = path
    while True:  # of a model with several parts, each has a config of its own
        heads = getattr(getattr(modules[at], "config", None), "num_attention_heads", None)
        if isinstance(heads, int) and heads > 0:
            return heads
        if not at:
            raise InvalidInput(
                f"{type(modules['']).__name__} names no number of attention heads for {path!r}, so that no head "
                f"can be told from the others; read '{path}:input', all of it"
            )
        at = at.rpartition(".")[0]
