"""Configs: frozen, keyword-only, next to what they build; unknown keys are refused.

A *kind* is a family of configs that may grow from outside the package (allocators, budgets, objectives,
schedules). Its base class derives from ``Kind``; every concrete subclass sets ``kind: Literal["name"]`` and is
found by that name as soon as its module has been imported. Annotate a field with ``Open[AllocatorConfig]`` and
any registered member is accepted, validated by its own class and written back whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from .errors import InvalidConfig, UnknownName, nearest

_C = TypeVar("_C", bound="Config")

_LONGEST = 200  # characters of a value that a message repeats


class Config(BaseModel):
    """Base of every config. Equality is by value; ``digest()`` names it on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def __init__(self, /, **data: Any) -> None:
        """Raises ``InvalidConfig`` with one line per fault."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidConfig(f"{type(self).__name__}: {_faults(error, type(self), data)}") from None

    # pydantic then validates configs within configs as if this were its own, and a fault keeps its whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON form."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def parse(cls: type[_C], data: object, where: str) -> _C:
        """Validate ``data`` (usually read from JSON). Raises ``InvalidConfig`` with one line per fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidConfig(f"{where}: {_faults(error, cls, data)}") from None

    @classmethod
    def rewritten(cls, data: object) -> object:
        """``data`` as this version writes it, newer fields at their defaults; itself if it does not validate.

        It means the same only because the default of a new field is what there was before it.
        """
        try:
            return cls.model_validate(data).model_dump(mode="json")
        except ValidationError:
            return data


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _faults(error: ValidationError, cls: type[BaseModel], data: object) -> str:
    """The faults of a failed validation in words, with the nearest field for an unknown key.

    What a field with ``repr=False`` holds is never repeated: it may be a secret.
    """
    lines = []
    for fault in error.errors(include_url=False):
        loc = fault["loc"]
        path = ".".join(str(part) for part in loc)
        message = fault["msg"].removeprefix("Value error, ")
        first = cls.model_fields.get(str(loc[0])) if loc else None
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key '{path}' ({_known_keys(loc, cls, data)}); remove it or correct its name")
        elif fault["type"] == "missing":
            lines.append(f"'{path}' is missing; set it")
        elif first is not None and not first.repr:
            lines.append(f"'{path}': {message}")
        else:
            # A fault of the whole config says in its message which values it is about.
            whole = not path or (fault["type"] == "value_error" and isinstance(fault["input"], dict))
            lines.append(message if whole else f"'{path}' = {_short(fault['input'])}: {message}")
    return "; ".join(lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _known_keys(loc: tuple[int | str, ...], cls: type[BaseModel], data: object) -> str:
    """The keys that could have stood where the last part of ``loc`` does, and the nearest of them."""
    known: type[BaseModel] | None = cls
    for part in loc[:-1]:
        known, data = _inside(known, part, data)
    if known is None:
        return "see its config"
    keys = known.model_fields
    return f"known keys: {', '.join(sorted(keys))}; nearest: {nearest(str(loc[-1]), keys, 1)}"


def _inside(cls: type[BaseModel] | None, part: int | str, data: object) -> tuple[type[BaseModel] | None, object]:
    """The config class at ``part`` of one, as far as it can be told, and the data there."""
    try:
        data = data[part]  # type: ignore[index]
    except (TypeError, LookupError):
        data = None
    if cls is not None and isinstance(part, str):  # a place in a list has the class of the list
        field = cls.model_fields.get(part)
        cls = None if field is None else _config_in(field.annotation)
    if cls is not None and issubclass(cls, Kind) and isinstance(data, dict):
        cls = cls.members.get(str(data.get("kind")), cls)
    return cls, data


def _config_in(annotation: Any) -> type[BaseModel] | None:
    """The first config class that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_config_in, get_args(annotation))), None)


class Kind(Config):
    """Base of an open family of configs, told apart by their ``kind``."""

    members: ClassVar[dict[str, type[Kind]]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        field = cls.model_fields.get("kind")
        if Kind in cls.__bases__:  # the head of a family: its members register below it
            cls.members = {}
        if field is None:
            return
        for name in get_args(field.annotation):
            known = cls.members.get(name)
            # The same class may come again under a reload; two different ones under one name may not.
            if known is not None and _place(known) != _place(cls):
                raise InvalidConfig(f"kind '{name}' is taken by {_place(known)}; choose another name")
            cls.members[name] = cls

    @classmethod
    def shorthand(cls, value: object) -> object:
        """What a short form in a config stands for; other values as they are."""
        return value

    @classmethod
    def lookup(cls, kind: object) -> type[Kind]:
        """The member named ``kind``. Raises ``UnknownName`` naming the nearest ones."""
        member = cls.members.get(kind) if isinstance(kind, str) else None
        if member is None:
            raise UnknownName(
                f"unknown {cls.__name__} kind {kind!r}; nearest: {nearest(str(kind), cls.members)}. "
                "A kind from outside the package is known once the module that defines it is imported "
                "(on the command line: --plugin FILE.py)"
            )
        return member


def _resolve(head: type[Kind], value: object) -> object:
    value = head.shorthand(value)
    if isinstance(value, dict):
        return head.lookup(value.get("kind")).model_validate(value)
    return value


_K = TypeVar("_K", bound=Kind)

if TYPE_CHECKING:
    Open = Annotated[_K, "any registered member of the family"]
else:

    class Open:
        """``Open[AllocatorConfig]``: a field that takes any registered member of that family."""

        def __class_getitem__(cls, head: Any) -> Any:
            return Annotated[SerializeAsAny[head], BeforeValidator(lambda value: _resolve(head, value))]
