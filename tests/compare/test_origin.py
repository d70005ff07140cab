"""Names, settings and seeds of SAEs, and which may be compared on a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import apportion as ap
from apportion.allocators import AllocatorConfig, TokenChoiceConfig
from apportion.compare.origin import Seed, check_fair, methods_of, origin_of
from apportion.errors import InvalidInput

from ..conftest import make_sae
from .conftest import many_documents


def sae(seed: int = 0, **training: Any) -> ap.SAE:
    made = make_sae(TokenChoiceConfig.for_k(4))
    run = {"sae": made.config.model_dump(mode="json"), "seed": seed, "clip": training.pop("clip", 1.0)}
    made.metadata = {"training": {"config": run, "settings": {"n_tokens": 512, "seed": 7, **training}}}
    return made


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("runs/soft_sae-k32-s1", "soft_sae"),
        ("soft_sae-k2.5", "soft_sae"),
        ("jump_relu", "jump_relu"),
        ("a-k8/b-k16", "b"),
        ("top-k8s-k32", "top-k8s"),
        ("k32", "token_choice"),
        ("k32-wide", "wide"),
    ],
)
def test_a_run_is_named_by_its_method_k_and_seed(name: str, stem: str) -> None:
    assert origin_of(name, sae()).stem == stem


def test_seed_and_k_are_read_from_the_metadata() -> None:
    origin = origin_of("x", sae(seed=3))
    assert (origin.seed, origin.k) == (Seed(3, 7), 4)
    bare = make_sae(TokenChoiceConfig.for_k(4))
    assert origin_of("x", bare).seed == Seed(None, None)


def test_one_name_is_one_method_whatever_seed_and_k() -> None:
    other = make_sae(AllocatorConfig.lookup("token_choice").parse({"budget": {"kind": "constant", "k": 8}}, ""))
    other.metadata = sae(seed=5, log_every=3, n_tokens=512).metadata
    other.metadata["training"]["config"]["sae"] = other.config.model_dump(mode="json")
    origins = [origin_of("r/a-k4-s0", sae()), origin_of("q/a-k8-s5", other), origin_of("b-k4", sae())]
    assert list(methods_of(origins).values()) == ["a", "a", "b"]


def test_one_name_with_other_settings_is_two_methods_that_say_which() -> None:
    origins = [origin_of("r/a-k4", sae()), origin_of("q/a-k4", sae(n_tokens=1024, clip=2.0))]
    assert methods_of(origins) == {
        "r/a-k4": "a [clip=1.0, train.n_tokens=512]",
        "q/a-k4": "a [clip=2.0, train.n_tokens=1024]",
    }


def test_what_it_was_trained_on_is_what_it_is_measured_on(trained: dict[str, Path]) -> None:
    own = ap.load(trained["s0/token_choice-k3"])
    check_fair(own, many_documents())
    for source, words in (
        (many_documents(heldout=0.2), "trained with heldout = 0.3 and the source is split with 0.2"),
        (many_documents(split_seed=1), "trained with split_seed = 0 and the source is split with 1"),
        (many_documents(shift=1.0), "trained on fingerprint .* compare it on what it was trained on"),
    ):
        with pytest.raises(InvalidInput, match=words):
            check_fair(own, source)
    coupled = make_sae(AllocatorConfig.lookup("mutual_choice").for_k(4))  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="couples rows"):
        check_fair(coupled, many_documents())
