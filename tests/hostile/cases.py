"""One case at a time in a process of its own, so that hangs and signals are seen for what they are."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from apportion.errors import ApportionError

GOOD = ("refused", "same", "done", "killed")
MEMORY = 6 << 30
SECONDS = 60.0


@dataclass
class Tally:
    """Outcomes of the cases of one kind, and the failures among them in words."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    def add(self, name: str, outcome: str, words: str) -> None:
        self.counts[outcome] += 1
        if outcome not in GOOD:
            self.failures.append(f"{name}: {outcome}: {words}")


def outcome_of(action: Callable[[], str]) -> tuple[str, str]:
    """``refused`` for one of our own errors, ``traceback`` for any other, else what ``action`` says."""
    try:
        return action(), ""
    except ApportionError as error:
        words = str(error)
        return ("refused", words) if words and "\x1b" not in words else ("no sentence", words)
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]


def isolated(action: Callable[[], str], seconds: float = SECONDS) -> tuple[str, str]:
    """``outcome_of`` in a child with bounded memory and time; ``hang`` and ``signal N`` are outcomes too."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(quiet, place)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(outcome_of(action)).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    said, deadline = b"", time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            said += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if not said:
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else str(status)
        return ("hang", f"no end within {seconds:g} s") if name == "SIGKILL" else (f"signal {name}", "")
    outcome, words = json.loads(said)
    return outcome, words


def run_all(
    cases: Iterable[tuple[str, str, Callable[[], str]]], until: float, say: Callable[[str], None] = lambda _: None
) -> dict[str, Tally]:
    """Outcomes by kind of (kind, name, action), as far as the time goes.

    Args:
        until: as ``time.monotonic`` has it.
    """
    tallies: dict[str, Tally] = {}
    for kind, name, action in cases:
        if time.monotonic() > until:
            break
        tally = tallies.setdefault(kind, Tally())
        tally.add(name, *isolated(action))
        if tally.failures and tally.failures[-1].startswith(f"{name}:"):
            say(tally.failures[-1])
    return tallies


def fresh(path: Path) -> Path:
    """An empty place for one case."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
