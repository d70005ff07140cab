"""Documents cut into the contexts that a model is fed: windows of tokens, batched with little padding."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ApportionError, InvalidConfig, InvalidInput
from .capture import first_line
from .frame import Bos, Frame, check_frame, frame_of
from .pieces import PIECE, Pieces, encoded
from .source import Split
from .texts import Document


@dataclass(frozen=True, eq=False)
class Window:
    """One context of one document.

    Attributes:
        ids: [L] int32, with the special tokens that the tokenizer puts around it.
        keep: [L] bool, the tokens whose activations are captured.
        document: index of the document.
        start: place of its first kept token among the kept tokens of the document.
        inputs: what the model is fed, where that is not ``ids`` (which are then empty).
        span: the characters of the text that its kept tokens cover, from and up to, if asked for.
    """

    ids: NDArray[np.int32]
    keep: NDArray[np.bool_]
    document: int
    start: int
    inputs: Mapping[str, Tensor] | None = None
    span: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        """Number of kept tokens."""
        return int(self.keep.sum())

    @property
    def shapes(self) -> Hashable:
        """Equal for contexts that can be in one batch; token ids are padded, other inputs are not."""
        return tuple((name, t.dtype, t.shape) for name, t in sorted((self.inputs or {}).items()))

    def clip(self, rows: int) -> Window:
        """The same context with at most ``rows`` kept tokens."""
        return replace(self, keep=self.keep & (self.keep.cumsum() <= rows))

    def without(self, rows: NDArray[np.int64]) -> Window:
        """The same context whose kept tokens number ``rows`` (the first is 0) are not kept."""
        keep = self.keep.copy()
        keep[np.flatnonzero(self.keep)[rows]] = False
        return replace(self, keep=keep)


@dataclass(frozen=True, eq=False)
class Contexts:
    """A batch of contexts, padded on the right to the longest.

    Attributes:
        input_ids: [c, L] int64, 0 where padded.
        attention_mask: [c, L] int64, 1 on tokens and 0 on padding.
        keep: [c, L] bool, the positions whose activations are captured.
        document: [c] int64, the document of each context.
        start: [c] int64, place of its first kept token in that document.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    document: Tensor
    start: Tensor

    @property
    def rows(self) -> int:
        """Number of kept tokens."""
        return int(self.keep.sum())

    def part(self, rows: slice) -> Contexts:
        """Some of the contexts, padded as all of them are."""
        return Contexts(**{name: column[rows] for name, column in vars(self).items()})

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What the model takes: ``input_ids`` and ``attention_mask``, on ``device``."""
        return {"input_ids": self.input_ids.to(device), "attention_mask": self.attention_mask.to(device)}


@runtime_checkable
class ContextSource(Protocol):
    """A source that can also show the texts behind its activations."""

    @property
    def module(self) -> str:
        """Path of the module whose output the activations are."""

    def contexts(self, split: Split, batch_size: int, limit_rows: int | None = None) -> Iterator[Contexts]: ...


def pad(windows: Sequence[Window]) -> Contexts:
    """The windows as one padded batch, in their order."""
    shape = len(windows), max(len(window.ids) for window in windows)
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    keep = np.zeros(shape, np.bool_)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
        mask[row, : len(window.ids)] = 1
        keep[row, : len(window.ids)] = window.keep
    return Contexts(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        keep=torch.from_numpy(keep),
        document=torch.tensor([window.document for window in windows]),
        start=torch.tensor([window.start for window in windows]),
    )


def model_inputs(windows: Sequence[Window], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """What the model is fed for a batch of equal ``shapes``, and which positions to keep, [c, L] bool."""
    if windows[0].inputs is None:
        contexts = pad(windows)
        return contexts.inputs(device), contexts.keep
    mappings = [window.inputs or {} for window in windows]
    stacked = {name: torch.stack([one[name] for one in mappings]).to(device) for name in mappings[0]}
    return stacked, torch.from_numpy(np.stack([window.keep for window in windows]))


def batch_windows(
    windows: Iterable[Window], batch_size: int, limit_rows: int | None = None
) -> Iterator[Contexts]:
    """Consecutive windows in padded batches, ending after the one that brings ``limit_rows`` kept tokens."""
    batch: list[Window] = []
    rows = 0
    for window in windows:
        batch.append(window)
        rows += window.rows
        full = limit_rows is not None and rows >= limit_rows
        if len(batch) == batch_size or full:
            yield pad(batch)
            batch = []
        if full:
            return
    if batch:
        yield pad(batch)


def check_context(
    model: Any, tokenizer: Any, context: int, *, skip_first: int = 0, bos: Bos = "auto", name: str = "the model"
) -> None:
    """Refuse a tokenizer that cannot cut windows for ``model``, a context longer than the model can read, and
    settings that leave no token of one. Warns if a BOS that the tokenizer knows is in front of none.

    Args:
        skip_first, bos: as for ``windows_of``.
        name: of the model, for the warning.

    Raises ``InvalidInput`` for the first, ``InvalidConfig`` for the others.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        found = "no tokenizer" if tokenizer is None else f"the slow tokenizer {type(tokenizer).__name__}"
        raise InvalidInput(f"the model comes with {found}; expected a fast one: add its tokenizer.json")
    special = frame_of(tokenizer, bos).size
    longest = most_positions(model)
    if context <= special or (longest is not None and context > longest):
        raise InvalidConfig(
            f"context = {context} does not fit: expected more than {special} special tokens and at "
            f"most {longest or 'any number of'} positions of this model; choose a length between"
        )
    rows, vocabulary = embedding_rows(model), getattr(tokenizer, "vocab_size", 0)
    if rows is not None and vocabulary > rows:
        raise InvalidInput(
            f"the tokenizer knows {vocabulary} tokens and the model embeds {rows}, so they do not belong "
            "together; give the model the tokenizer that it was trained with"
        )
    check_frame(tokenizer, context, skip_first, bos, name)


def embedding_rows(model: Any) -> int | None:
    """How many token ids the model can read, if it says so."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def most_positions(model: Any) -> int | None:
    """The longest context that the model can read, if it says so."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    found = [longest] if isinstance(longest, int) and longest > 0 else []
    if isinstance(model, nn.Module):
        for name, table in model.named_modules():
            # RoBERTa and its kin count positions from behind the index of padding.
            if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
                padding = table.padding_idx
                found.append(table.num_embeddings - (0 if padding is None else padding + 1))
    return min(found, default=None)


_D = TypeVar("_D", contravariant=True)


class Cutter(abc.ABC, Generic[_D]):
    """Makes contexts of documents."""

    @abc.abstractmethod
    def windows(self, documents: Sequence[_D], first: int) -> list[Iterable[Window]]:
        """The contexts of each of documents ``first``, ``first + 1`` and so on that keep at least one row.

        Those of a long document may be made only when they are asked for, once.
        """


class TextCutter(Cutter[Document]):
    """Windows of tokens.

    Args:
        context: most tokens in a window, special tokens included.
        rows: token ids from this on are refused; None allows all.
        spans: whether windows say which characters they cover.
        skip_first, bos: as for ``windows_of``.
    """

    def __init__(
        self,
        tokenizer: Any,
        context: int,
        rows: int | None = None,
        spans: bool = False,
        *,
        skip_first: int = 0,
        bos: Bos = "auto",
    ) -> None:
        self._tokenizer, self._context, self._rows, self._spans = tokenizer, context, rows, spans
        self._skip_first, self._bos = skip_first, bos

    def windows(self, documents: Sequence[Document], first: int) -> list[Iterable[Window]]:
        found = self._cut(documents, first)
        return [
            self._checked(document, own) if isinstance(own, Iterator) else [*self._checked(document, own)]
            for document, own in zip(documents, found, strict=True)
        ]

    def _cut(self, documents: Sequence[Document], first: int) -> list[Iterable[Window]]:
        texts = [document.text for document in documents]
        cut: dict[str, Any] = {"skip_first": self._skip_first, "bos": self._bos}
        try:
            return windows_of(texts, first, self._tokenizer, self._context, self._spans, **cut)
        except ApportionError:
            raise
        except Exception as error:  # the Rust part of tokenizers raises its own family
            if len(documents) > 1:  # one by one, to name it
                return [own for at, document in enumerate(documents) for own in self._cut([document], first + at)]
            raise _unreadable(documents[0], error) from error

    def _checked(self, document: Document, windows: Iterable[Window]) -> Iterator[Window]:
        try:
            for window in windows:
                if self._rows is not None and (largest := int(window.ids.max())) >= self._rows:
                    raise InvalidInput(
                        f"document {document.id!r} has the token id {largest} and the model embeds {self._rows}; "
                        "give the model the tokenizer that it was trained with"
                    )
                yield window
        except ApportionError:
            raise
        except Exception as error:  # as above, of a text that is read by and by
            raise _unreadable(document, error) from error


def _unreadable(document: Document, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"the tokenizer cannot read document {document.id!r} ({first_line(error)}); repair or leave out that text"
    )


def windows_of(
    texts: Sequence[str],
    first: int,
    tokenizer: Any,
    context: int,
    spans: bool = False,
    *,
    skip_first: int = 0,
    bos: Bos = "auto",
) -> list[Iterable[Window]]:
    """The contexts of each text that keep at least one token: a list, or for a long text an iterator, which
    tokenises it as far as it is asked.

    Args:
        texts: of documents ``first``, ``first + 1`` and so on.
        context: most tokens in a window, special tokens included.
        spans: whether windows say which characters they cover.
        skip_first: leave out the first so many positions of each context, special tokens included, as special
            tokens are.
        bos: whether a context begins with the token that begins a text: as the tokenizer does it ("auto"),
            always ("yes"), or never ("no", of what the tokenizer adds).
    """
    frame = frame_of(tokenizer, bos)
    special = np.array(sorted(tokenizer.all_special_ids), np.int64)
    short = [text for text in texts if len(text) <= PIECE]
    whole = iter(encoded(tokenizer, short) if short else [])
    result: list[Iterable[Window]] = []
    for number, text in enumerate(texts, first):
        cut = _Cut(number, frame, context, skip_first, special, spans)
        if len(text) <= PIECE:
            own = next(whole)
            offsets = np.array(own.offsets, np.int64).reshape(-1, 2) if spans else np.empty((len(own.ids), 0))
            result.append([*cut.windows(iter([(np.array(own.ids, np.int32), offsets)]))])
        else:
            result.append(cut.windows((part.ids, part.spans) for part in Pieces(tokenizer).read(text)))
    return result


@dataclass(frozen=True)
class _Cut:
    """How the tokens of one document become windows."""

    document: int
    frame: Frame
    context: int
    skip_first: int
    special: NDArray[np.int64]
    spans: bool

    def windows(self, tokens: Iterator[tuple[NDArray[np.int32], NDArray[Any]]]) -> Iterator[Window]:
        """The windows of a text whose tokens [n], and their characters [n, 2], come by and by."""
        room, taken = self.context - self.frame.size, 0
        ids, offsets = np.zeros(0, np.int32), None
        for more, where in tokens:
            ids = np.concatenate([ids, more])
            offsets = where if offsets is None else np.concatenate([offsets, where])
            whole = len(ids) - len(ids) % room
            for at in range(0, whole, room):
                yield from (made := self._window(ids[at : at + room], offsets[at : at + room], taken))
                taken += sum(window.rows for window in made)
            ids, offsets = ids[whole:], offsets[whole:]
        if len(ids) and offsets is not None:
            yield from self._window(ids, offsets, taken)

    def _window(self, own: NDArray[np.int32], offsets: NDArray[Any], taken: int) -> list[Window]:
        """The window of the tokens ``own``, if one of them is kept."""
        ids = self.frame.around(own)
        keep = ~np.isin(ids, self.special)
        keep[: self.skip_first] = False
        if not keep.any():
            return []
        lead = len(ids) - len(own) - len(self.frame.after)
        span = _span(offsets[keep[lead : lead + len(own)]]) if self.spans else None
        return [Window(ids, keep, self.document, taken, span=span)]


def _span(kept: NDArray[np.int64]) -> tuple[int, int]:
    return int(kept[:, 0].min()), int(kept[:, 1].max())
