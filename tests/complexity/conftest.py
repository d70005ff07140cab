"""Texts whose complexity nobody disputes, and the human ratings beside the repository."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from apportion.activations import LoadedModel, load_model
from apportion.activations.store import cutter_of
from apportion.complexity import LanguageModel, Tools

SHARED = Path(__file__).resolve().parents[3] / "shared"

EASY = """Once upon a time there were four little Rabbits, and their names were Flopsy, Mopsy, Cotton-tail,
and Peter. They lived with their Mother in a sand-bank, underneath the root of a very big fir tree.
"Now, my dears," said old Mrs. Rabbit one morning, "you may go into the fields or down the lane, but
don't go into Mr. McGregor's garden: your Father had an accident there; he was put in a pie by Mrs.
McGregor. Now run along, and don't get into mischief. I am going out." Then old Mrs. Rabbit took a
basket and her umbrella, and went through the wood to the baker's. She bought a loaf of brown bread
and five currant buns."""
"""Beatrix Potter, The Tale of Peter Rabbit (1902)."""

HARD = """The latent causes of faction are thus sown in the nature of man; and we see them everywhere brought
into different degrees of activity, according to the different circumstances of civil society. A
zeal for different opinions concerning religion, concerning government, and many other points, as
well of speculation as of practice; an attachment to different leaders ambitiously contending for
pre-eminence and power; or to persons of other descriptions whose fortunes have been interesting to
the human passions, have, in turn, divided mankind into parties, inflamed them with mutual
animosity, and rendered them much more disposed to vex and oppress each other than to co-operate for
their common good. So strong is this propensity of mankind to fall into mutual animosities, that
where no substantial occasion presents itself, the most frivolous and fanciful distinctions have
been sufficient to kindle their unfriendly passions and excite their most violent conflicts."""
"""James Madison, Federalist No. 10 (1787)."""


def shared(name: str) -> Path:
    """A file or folder next to the repository, or a skip that says which one is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def rated() -> list[dict[str, Any]]:
    """Every twentieth excerpt with its human rating of ease."""
    with gzip.open(shared("data/clear_complexity.jsonl.gz"), "rt") as file:
        return [json.loads(line) for line in file][::20]


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    return load_model(str(shared("models/tiny-lm")))


@pytest.fixture(scope="session")
def tools(tiny: LoadedModel) -> Tools:
    """Any model asked for is the tiny one."""

    def language_model(name: str, context: int | None) -> LanguageModel:
        length = context or 256
        return LanguageModel(tiny, cutter_of(tiny, (), length, tensors=False), length)

    return Tools(language_model=language_model)
