"""``python -m tests.hostile``: all of it, as far as the time goes; a table of what was run, and what failed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import craft, damage, kills, sweeps, world
from .cases import Tally, run_all

NUMBERS = {"flips": 1300, "structural": 520, "crafted": 540, "kills": 310, "interrupts": 30, "sweeps": 210}
BEGIN, END = "<!-- hostile: begin -->", "<!-- hostile: end -->"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_part(part: str, place: Path, here: Path, n: int, first: int, until: float) -> dict[str, Tally]:
    """Outcomes of one part, by kind."""
    case = place / "case"
    if part == "flips":
        return run_all(damage.flips(here, case, n, first), until, say)
    if part == "structural":
        return run_all(damage.structural(here, case, n, first), until, say)
    if part == "crafted":
        return run_all(craft.crafted(here, case, n, first), until, say)
    if part == "sweeps":
        return sweeps.sweep(here, place, n, lambda: time.monotonic() > until, first)
    if part == "interrupts":
        return {"any command": kills.interrupts(n, until)}
    return dict(kills.kills(here, place, n, until, first))


def table(found: dict[str, dict[str, Tally]]) -> str:
    """Markdown: a row per part and kind."""
    lines = [
        "| what | of | run | refused or ended as asked | harmless | done | failures |",
        "|---|---|" + "--:|" * 5,
    ]
    for part, tallies in found.items():
        for kind, tally in tallies.items():
            c = tally.counts
            cells = (c["refused"] + c["killed"], c["same"], c["done"], len(tally.failures))
            lines.append(f"| {part} | {kind} | {tally.n} | " + " | ".join(map(str, cells)) + " |")
        total = sum(tally.n for tally in tallies.values())
        failures = sum(len(tally.failures) for tally in tallies.values())
        lines.append(f"| **{part}** | all | **{total}** | | | | **{failures}** |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(NUMBERS))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--scale", type=float, default=1, help="of the number of cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, dict[str, Tally]] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        place = Path(folder)
        here = world.build(place / "world")
        for part in options.parts.split(","):
            begun = time.monotonic()
            found[part] = run_part(part, place, here, round(NUMBERS[part] * options.scale), options.first, end)
            say(f"{part}: {sum(t.n for t in found[part].values())} in {time.monotonic() - begun:.0f} s")
    say(table(found))
    failures = [words for tallies in found.values() for tally in tallies.values() for words in tally.failures]
    for words in failures:
        say(words)
    if options.write:
        text = options.write.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{table(found)}{END}{after}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
