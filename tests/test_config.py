"""Configs: frozen, strict, open to kinds from outside."""

from __future__ import annotations

import pytest
from pydantic import Field

from apportion.allocators import AllocatorConfig, MutualChoiceConfig, TokenChoiceConfig
from apportion.clock import END, Clock
from apportion.config import Config
from apportion.errors import InvalidConfig, UnknownName
from apportion.recipes import find_recipe, recipe_names
from apportion.sae import SAEConfig
from apportion.schedules import Constant, Linear, WarmupDecay
from apportion.training import RunConfig, TrainConfig


def test_a_run_survives_json():
    for name in recipe_names():
        run = find_recipe(name).make(16, 64, 4, 3)
        assert RunConfig.parse(run.model_dump(mode="json"), "x") == run
        assert RunConfig.parse(run.model_dump(mode="json"), "x").digest() == run.digest()


def test_unknown_keys_and_kinds_name_what_is_known():
    data = find_recipe("topk").make(16, 64, 4, 0).model_dump(mode="json")
    with pytest.raises(InvalidConfig, match="unknown key 'lrr'"):
        RunConfig.parse(data | {"lrr": 1}, "x")
    data["sae"]["allocator"]["kind"] = "token_choise"
    with pytest.raises(UnknownName, match="token_choice"):
        RunConfig.parse(data, "x")


@pytest.mark.parametrize("k", [0, -3, 65, 1000])
def test_k_must_fit(k):
    for kind in recipe_names():
        with pytest.raises(InvalidConfig):
            find_recipe(kind).make(16, 64, k, 0)
    with pytest.raises(InvalidConfig):
        SAEConfig(d_in=16, d_sae=2, allocator=MutualChoiceConfig(k=3))


def test_a_constant_budget_is_a_whole_number():
    with pytest.raises(InvalidConfig, match=r"'k' = 2\.5"):
        TokenChoiceConfig.for_k(2.5)
    assert MutualChoiceConfig.for_k(2.5).mean_k == 2.5


def test_recipes_by_alias_and_unknown_ones():
    assert find_recipe("topk") is find_recipe("token_choice")
    assert find_recipe("batch_topk") is find_recipe("mutual_choice")
    with pytest.raises(UnknownName, match="token_choice"):
        find_recipe("token_chioce")


def test_what_others_freeze_into_is_no_recipe():
    with pytest.raises(UnknownName, match="unknown recipe 'threshold'"):
        find_recipe("threshold")


def test_a_kind_is_taken_once():
    from typing import Literal

    with pytest.raises(InvalidConfig, match="taken"):

        class Other(TokenChoiceConfig):
            kind: Literal["mutual_choice"] = "mutual_choice"  # type: ignore[assignment]


def test_a_family_member_below_a_shared_base_is_known_and_no_name_is_taken_over():
    from typing import Literal

    class Shared(AllocatorConfig):
        k: int = 3

        @property
        def mean_k(self):
            return self.k

        @classmethod
        def for_k(cls, k):
            return cls(k=k)

        def build(self, *, d_in, d_sae):
            raise NotImplementedError

    class Below(Shared):
        kind: Literal["below_a_base"] = "below_a_base"

    assert AllocatorConfig.members.pop("below_a_base") is Below
    with pytest.raises(InvalidConfig, match="taken by apportion"):

        class TokenChoiceConfig(Shared):
            kind: Literal["token_choice"] = "token_choice"


def test_schedules():
    assert Constant(value=3.0)(END) == 3.0
    line = Linear(start=10, end=0, begin=0.25, until=0.75)
    assert [line(Clock(s, 100)) for s in (0, 25, 50, 75, 100)] == [10, 10, 5, 0, 0]
    with pytest.raises(InvalidConfig):
        Linear(start=0, end=1, begin=0.5, until=0.5)
    lr = WarmupDecay(peak=2.0, warmup=0.1, decay=0.2)
    values = [lr(Clock(s, 100)) for s in range(100)]
    assert values[0] == pytest.approx(0.2) and values[9] == 2.0 and values[50] == 2.0
    assert values[80] == 2.0 and values[90] == pytest.approx(1.0) and values[99] == pytest.approx(0.1)
    assert min(values) > 0 and max(values) == 2.0
    assert 0 < WarmupDecay(peak=1.0)(Clock(0, 1)) <= 1.0


def test_a_stream_holds_a_step():
    assert TrainConfig(n_tokens=5000, batch_size=1000).n_steps == 5
    with pytest.raises(InvalidConfig, match="less than one batch"):
        TrainConfig.parse({"n_tokens": 10, "batch_size": 11}, "x")


def test_a_config_made_in_python_is_refused_in_our_words_and_with_the_nearest_key() -> None:
    whole = find_recipe("token_choice").make(8, 32, 4, 0).model_dump(mode="json")
    lr = whole["lr"]
    for make, words in (
        (lambda: TrainConfig(tokens=3), r"TrainConfig: unknown key 'tokens' .*nearest: 'n_tokens'"),
        (lambda: TrainConfig(n_tokens=-1), r"TrainConfig: 'n_tokens' = -1: "),
        (lambda: RunConfig(**{**whole, "lr": {**lr, "pek": 1}}), r"unknown key 'lr\.pek' .*nearest: 'peak'"),
        (
            lambda: RunConfig(**{**whole, "objectives": [{"kind": "aux_k", "row": 2}]}),
            r"'objectives\.0\.row' .*'rows'",
        ),
    ):
        with pytest.raises(InvalidConfig, match=words):
            make()


def test_a_value_that_may_be_a_secret_or_a_book_is_not_repeated() -> None:
    class Guarded(Config):
        address: int = Field(default=0, repr=False)
        plain: int = 0

    with pytest.raises(InvalidConfig, match=r"^Guarded: 'address': Input should be") as refused:
        Guarded.parse({"address": "SECRET"}, "Guarded")
    assert "SECRET" not in str(refused.value)
    with pytest.raises(InvalidConfig) as refused:
        Guarded(plain="x" * 10_000)
    assert len(str(refused.value)) < 400
