"""Bytes flipped and structure broken: without a checksum that fits, every change must be named or harmless."""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from .cases import fresh
from .readers import KINDS, Kind, copied

Change = Callable[[Path, random.Random], None]


def flip(file: Path, draw: random.Random) -> None:
    """One bit of one byte."""
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def cut(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def grow(file: Path, draw: random.Random) -> None:
    with file.open("ab") as end:
        end.write(draw.randbytes(draw.randint(1, 200)))


def blank(file: Path, draw: random.Random) -> None:
    """A page of zeros, as a disk leaves after a power cut."""
    data = bytearray(file.read_bytes())
    at = draw.randrange(len(data))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    file.write_bytes(data)


def insert(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    at = draw.randrange(len(data))
    data[at:at] = draw.randbytes(draw.randint(1, 9))
    file.write_bytes(data)


def lose(file: Path, draw: random.Random) -> None:
    """Some bytes in the middle are gone."""
    data = bytearray(file.read_bytes())
    at = draw.randrange(len(data))
    del data[at : at + draw.randint(1, 40)]
    file.write_bytes(data)


def swap_lines(file: Path, draw: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    file.write_bytes(b"".join(lines))


def double_line(file: Path, draw: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    file.write_bytes(b"".join([*lines[:at], lines[at], *lines[at:]]))


def other_file(file: Path, draw: random.Random) -> None:
    """Another file of the same folder in its place, or one of random bytes."""
    others = [path for path in sorted(file.parent.iterdir()) if path.is_file() and path != file]
    data = draw.choice(others).read_bytes() if others else draw.randbytes(100)
    file.write_bytes(data)


def replaced_by(make: Callable[[Path], object]) -> Change:
    def change(file: Path, draw: random.Random) -> None:
        file.unlink()
        make(file)

    return change


STRUCTURAL: dict[str, Change] = {
    "cut": cut,
    "grown": grow,
    "zeros": blank,
    "inserted": insert,
    "lost": lose,
    "lines swapped": swap_lines,
    "line doubled": double_line,
    "another file": other_file,
    "empty": replaced_by(lambda file: file.touch()),
    "gone": replaced_by(lambda file: None),
    "a folder": replaced_by(lambda file: file.mkdir()),
    "a pipe": replaced_by(os.mkfifo),
    "a device": replaced_by(lambda file: file.symlink_to("/dev/zero")),
    "a loop": replaced_by(lambda file: file.symlink_to(file.name)),
    "deep": replaced_by(lambda file: file.write_text("[" * 100_000)),
    "deep object": replaced_by(lambda file: file.write_text('{"a":' * 5_000 + "1" + "}" * 5_000)),
    "a list": replaced_by(lambda file: file.write_text("[1, 2]")),
    "a number": replaced_by(lambda file: file.write_text("1" * 5_000)),
    "utf-16": replaced_by(lambda file: file.write_bytes(json.dumps({"format": "x"}).encode("utf-16"))),
}


def damaged(world: Path, place: Path, kind: Kind, reference: str, change: Change, seed: int) -> str:
    """Whether a change is ``refused`` or leaves the figure the ``same``; a ``silent change`` is a failure."""
    file, folder = copied(world, kind, fresh(place))
    before = file.read_bytes()
    change(file, random.Random(seed))
    if file.is_file() and not file.is_symlink() and file.read_bytes() == before:
        return "same"
    figure = kind.read(folder)
    if kind.checked:
        return "same" if figure == reference else "silent change"
    return "done"


@functools.cache
def references(world: Path, place: Path) -> dict[str, str]:
    """The figure of each kind of file as it is."""
    return {kind.name: kind.read(copied(world, kind, fresh(place))[1]) for kind in KINDS}


def flips(world: Path, place: Path, n: int, first: int = 0) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """``n`` flips over every kind of file, in turn."""
    figures = references(world, world.parent / "reference")
    for number in range(first, first + n):
        kind = KINDS[number % len(KINDS)]
        yield kind.name, f"flip {number}", _case(world, place, kind, figures[kind.name], flip, number)


def structural(
    world: Path, place: Path, n: int, first: int = 0, step: int = 1
) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """``n`` changes of structure over every kind of file and way, in turn."""
    figures = references(world, world.parent / "reference")
    pairs = [(kind, way) for way in STRUCTURAL for kind in KINDS]
    for number in range(first, first + n * step, step):
        kind, way = pairs[number % len(pairs)]
        action = _case(world, place, kind, figures[kind.name], STRUCTURAL[way], number)
        yield kind.name, f"structural {number} ({way})", action


def _case(world: Path, place: Path, kind: Kind, figure: str, change: Change, seed: int) -> Callable[[], str]:
    return lambda: damaged(world, place, kind, figure, change, seed)
