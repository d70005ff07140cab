"""Options drawn at random for every command: it does its work or refuses in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from apportion.cli import main

from .cases import Tally, fresh, isolated
from .world import MODULE

NUMBERS = st.one_of(
    st.integers(1, 64),
    st.integers(-3, 130),
    st.sampled_from(
        [2**31, 2**63, 10**30, "nan", "inf", "-inf", "1e308", "-0", "0.5", "", "x", "1,2", "0x10", "²"]
    ),
)
WORDS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["x" * 300, "\x1b[31m", "../..", "~nobody/x", "a/b/c", "-", "http://u:p@h/x", "/dev/null"]),
)
VALID = {
    "--module": [MODULE], "--column": ["ease"], "--field": ["kind"], "--text-field": ["text"], "--log": [""],
    "--direction": ["up", "down"], "--scorer": ["readability", "column"], "--target-field": ["ease"],
    "--set": ["field=ease", "token_choice.clip=0.5"], "--device": ["cpu"], "--dtype": ["float16"],
}  # fmt: skip
"""Values that make sense, of options that others seldom hit upon."""

DEVICES = st.sampled_from(["cpu", "cuda", "cuda:7", "meta", "xpu", "gpu", ""])


def commands(world: Path, out: Path) -> dict[str, tuple[list[Any], dict[str, st.SearchStrategy[Any]]]]:
    """What each command is given always, and the options that are drawn for it."""
    store, runs, data = world / "store", world / "runs", world / "data.jsonl"
    places = st.one_of(
        WORDS, st.sampled_from([str(world), str(store), str(runs), str(data), str(world / "model")])
    )
    reading = {"--limit": NUMBERS, "--module": WORDS, "--device": DEVICES, "--oracle": NUMBERS}
    return {
        "train": (["train", store, "--out", out / "runs", "--tokens", 256, "--batch", 64, "--d-sae", 48], {
            "--k": NUMBERS, "--seed": NUMBERS, "--lr": NUMBERS, "--heldout": NUMBERS, "--d-sae": NUMBERS,
            "--recipe": st.one_of(WORDS, st.sampled_from(["gated", "priced", "soft_sae", "jump_relu,topk"])),
            "--batch": NUMBERS, "--calibrate-tokens": NUMBERS, "--scores": places, "--device": DEVICES,
            "--set": WORDS, "--log": WORDS, "--module": WORDS, "--expansion": NUMBERS, "--paper": WORDS,
        }),
        "evaluate": (["evaluate", runs, "--data", store], {
            **reading, "--heldout": NUMBERS, "--model": places, "--downstream-limit": NUMBERS, "--data": places,
        }),
        "compare": (["compare", runs, "--data", store], {**reading, "--data": places}),
        "analyse": (["analyse", runs, "--data", store], {
            **reading, "--every": NUMBERS, "--neighbours": NUMBERS, "--scores": places, "--labels": places,
            "--field": WORDS, "--features": NUMBERS, "--document-tokens": NUMBERS,
        }),
        "report": (["report", runs, "--data", store, "-o", out / "page.html"], {
            **reading, "--detailed": NUMBERS, "--features": NUMBERS, "-o": places,
        }),
        "score": (["score", "--data", data, "--scorer", "column", "--column", "ease", "--out", out / "scores"], {
            "--limit": NUMBERS, "--column": WORDS, "--direction": WORDS, "--scorer": WORDS, "--context": NUMBERS,
            "--tokenizer": places, "--data": places, "--set": WORDS, "--text-field": WORDS, "--url": WORDS,
        }),
        "capture": (["capture", "--model", world / "model", "--module", "gpt_neox.layers.0", "--data", data,
            "--out", out / "store", "--max-rows", 200], {
            "--context": NUMBERS, "--batch-size": NUMBERS, "--max-rows": NUMBERS, "--module": WORDS,
            "--data": places, "--text-field": WORDS, "--target-field": WORDS, "--dtype": WORDS, "--model": places,
        }),
    }  # fmt: skip


def judged(arguments: list[str], place: Path) -> str:
    """``done`` or ``refused`` if the command ended as it should. Folders like ``..`` are small where it runs."""
    os.chdir(place)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as heard:
        try:
            status = main(arguments)
            parsed = True
        except SystemExit as leaving:
            status, parsed = int(leaving.code or 0), False
    assert status in (0, 2), f"status {status}"
    text = said.getvalue() + heard.getvalue()
    assert "Traceback" not in text and "\x1b" not in text, text
    if status == 2 and parsed:
        last = heard.getvalue().strip().splitlines()[-1]
        assert last, text
    return "done" if status == 0 else "refused"


def sweep(world: Path, place: Path, n: int, until: Callable[[], bool], start: int = 0) -> dict[str, Tally]:
    """``n`` draws over all commands; those after ``until`` says so are not run."""
    out = place / "sweep"
    known = commands(world, out)
    most = max(1, n // len(known))
    return {name: _drawn(fixed, options, out, most, until, start) for name, (fixed, options) in known.items()}


def _drawn(
    fixed: list[Any], options: dict[str, Any], out: Path, most: int, until: Callable[[], bool], start: int
) -> Tally:
    tally = Tally()
    some = st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=3, unique=True)
    values = {name: st.one_of(st.sampled_from(VALID.get(name, [1])), given) for name, given in options.items()}
    pairs = some.flatmap(lambda chosen: st.tuples(*(st.tuples(st.just(name), values[name]) for name in chosen)))

    @seed(start)
    @settings(max_examples=most, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(pairs)
    def one(drawn: tuple[tuple[str, Any], ...]) -> None:
        arguments = [str(part) for part in [*fixed, *(part for pair in drawn for part in pair)]]
        if not until():
            fresh(out)
            tally.add(" ".join(map(repr, arguments)), *isolated(lambda: judged(arguments, out)))

    one()
    return tally
