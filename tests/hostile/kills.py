"""Commands ended at random moments, begun again, and compared with what they come to when left alone.

Children are forked from a process that has imported everything, so that most kills fall into work; some commands
are processes of their own, killed while they import.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.cli import main

from .cases import Tally
from .world import MODULE, make_data

FIRST = "token_choice,mutual_choice,soft_sae,feature_choice,adaptive_k,priced"
RECIPES = f"{FIRST},relu_l1,p_anneal,jump_relu,gated,matryoshka"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PER_FOLDER = 6
"""Kills of one run of a command before it is left to end and compared."""


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Attributes:
        share: of all kills.
        arguments: of the command, given the folder that it may write to.
        figure: of what it left there and what it printed.
    """

    name: str
    share: float
    arguments: Callable[[Path], list[str]]
    figure: Callable[[Path, str], str]


def jobs(world: Path) -> list[Job]:
    """Every command that takes longer than a moment. Makes the data of a capture of several shards."""
    large = world / "large.jsonl"
    if not large.exists():
        make_data(large, 1200, 170)
    store, runs, model = str(world / "store"), str(world / "runs"), str(world / "model")
    sizes = ["--d-sae", "48", "--k", "4", "--tokens", "2048", "--batch", "64", "--checkpoint-seconds", "0.05"]
    return [
        Job("capture", 0.2, lambda out: ["capture", "--model", model, "--module", MODULE, "--data", str(large),
            "--out", str(out / "store"), "--context", "64"], lambda out, _: files(out, "store/*")),
        Job("train", 0.3, lambda out: ["train", store, "--out", str(out / "runs"), "--recipe", RECIPES,
            "--scores", str(world / "scores.jsonl"), *sizes],
            lambda out, _: files(out, "runs/*/sae.safetensors")),
        Job("score", 0.2, lambda out: ["score", "--data", str(large), "--scorer", "surprisal", "--model", model,
            "--limit", "300", "--out", str(out / "scores.jsonl")], lambda out, _: files(out, "scores.jsonl")),
        Job("evaluate", 0.1, lambda out: ["evaluate", runs, "--data", store, "--model", model, "--oracle", "16",
            "--json"], lambda _, said: numbers(said)),
        Job("compare", 0.05, lambda out: ["compare", runs, "--data", store, "--json"],
            lambda _, said: numbers(said)),
        Job("analyse", 0.05, lambda out: ["analyse", runs, "--data", store, "--json"],
            lambda _, said: numbers(said)),
        Job("report", 0.1, lambda out: ["report", runs, "--data", store, "--model", model, "-o",
            str(out / "page.html"), "--oracle", "16"], lambda out, _: files(out, "page.html")),
    ]  # fmt: skip


def files(out: Path, pattern: str) -> str:
    """A digest of all files that match, with their names."""
    found = hashlib.sha256()
    for path in sorted(out.glob(pattern)):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def numbers(said: str) -> str:
    """What was printed as JSON, but for the speed."""
    return json.dumps(_timeless(json.loads(said)))


def _timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _timeless(value) for key, value in data.items() if key != "tokens_per_s"}
    if isinstance(data, list):
        return [_timeless(part) for part in data]
    return data


def child(arguments: list[str], out: Path) -> int:
    """The process of one command, which writes what it says into ``out``."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 99
    with contextlib.suppress(BaseException):
        # A process of its own again: the handlers of a fresh Python, and standard streams in files.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for place, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), place)
        sys.stdout, sys.stderr = (os.fdopen(place, "w", closefd=False) for place in (1, 2))
        sys.argv = ["apportion", *arguments]
        try:
            status = main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
    os._exit(status)


def ended(pid: int, seconds: float) -> int | None:
    """The status of a child, None if it had to be killed after that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def finish(job: Job, out: Path) -> tuple[str, str]:
    """The figure of a command that is left to end, and what went wrong."""
    status = ended(child(job.arguments(out), out), 180)
    if status != 0:
        return "", f"status {status}: {(out / 'stderr').read_text()[-600:]}"
    return job.figure(out, (out / "stdout").read_text()), ""


def kill(job: Job, out: Path, seconds: float, draw: random.Random) -> str:
    """End a command after a random share of ``seconds``; in words what went wrong."""
    how = draw.choice(SIGNALS)
    pid = child(job.arguments(out), out)
    time.sleep(draw.uniform(0, seconds))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
    status = ended(pid, 60)
    said = (out / "stderr").read_text() if (out / "stderr").exists() else ""
    if status is None:
        return f"{how.name}: it did not end"
    expected = (0, -how) if how != signal.SIGINT else (0, 130, -how)
    if status not in expected or "Traceback" in said:
        return f"{how.name}: status {status}: {said[-1500:]}"
    return ""


def kills(world: Path, place: Path, n: int, until: float, first: int = 0) -> Iterator[tuple[str, Tally]]:
    """``n`` kills over all commands, by command; ends early when the time is over."""
    for job in jobs(world):
        tally, wanted = Tally(), max(1, round(n * job.share))
        out = place / f"reference-{job.name}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        finish(job, out)  # once for what is compiled or cached
        shutil.rmtree(out)
        out.mkdir()
        begun = time.monotonic()
        reference, fault = finish(job, out)
        seconds = time.monotonic() - begun
        if fault:
            tally.add(job.name, "failed", fault)
        number = 0
        while not fault and number < wanted and time.monotonic() < until:
            out = place / f"killed-{job.name}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            for _ in range(min(PER_FOLDER, wanted - number)):
                wrong = kill(job, out, seconds, random.Random(f"{job.name} {first + number}"))
                tally.add(f"{job.name} {first + number}", "bad end" if wrong else "killed", wrong)
                number += 1
            figure, wrong = finish(job, out)
            if wrong or figure != reference:
                tally.add(f"{job.name} up to {first + number}", "another figure", wrong)
        yield job.name, tally


def interrupts(n: int, until: float) -> Tally:
    """Commands of their own, interrupted at any moment of their first seconds, while they import."""
    tally, draw = Tally(), random.Random(0)
    for number in range(n):
        if time.monotonic() > until:
            break
        process = subprocess.Popen(
            [sys.executable, "-m", "apportion", "evaluate", "none", "--data", "none"],
            stdout=-1,
            stderr=-1,
            text=True,
        )
        # Python itself starts first, and what it says of an interrupt then is its own.
        time.sleep(draw.uniform(0.15, 4))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        fine = process.returncode in (2, 130, -signal.SIGINT) and "Traceback" not in said
        tally.add(f"interrupt {number}", "killed" if fine else "bad end", said[-800:])
    return tally
