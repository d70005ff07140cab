"""Many dictionaries in one model: fewer runs of it, and every number as when each is measured alone."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.activations.contexts import Contexts
from apportion.activations.models import LoadedModel
from apportion.activations.source import Split
from apportion.downstream import Downstream, fewer
from apportion.errors import InvalidInput
from apportion.evaluate import evaluate

from .test_evaluate import Dense, Identity, Nothing, Texts, rows

D, V, LENGTHS = 8, 11, ((12, 9, 5), (12, 12), (7, 3))


class Toy(nn.Module):
    """Embedding, a layer whose output is replaced, and a head; counts how often it is run."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(V, d), nn.Linear(d, d), nn.Linear(d, V)
        self.runs = 0
        self.bytes: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.runs += 1
        hidden = self.layer(self.embed(input_ids)).tanh()
        logits = self.head(hidden)
        self.bytes.append(logits.nbytes)
        return SimpleNamespace(logits=logits, last_hidden_state=logits)

    def since(self) -> int:
        runs, self.runs = self.runs, 0
        return runs


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


def contexts_of(lengths: tuple[int, ...], seed: int) -> Contexts:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, V, mask.shape, generator=generator) * mask
    keep = mask.bool() & (torch.rand(mask.shape, generator=generator) < 0.8)
    return Contexts(ids, mask, keep, torch.arange(len(lengths)), torch.zeros(len(lengths), dtype=torch.int64))


@pytest.fixture
def texts() -> Texts:
    source = Texts(rows(40, D), [contexts_of(lengths, seed) for seed, lengths in enumerate(LENGTHS)])
    source.module = "layer"
    return source


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_the_next_dictionary_needs_fewer_runs_and_measures_the_same(
    toy: Toy, texts: Texts, causal: bool, kept: int
) -> None:
    model = LoadedModel(toy, None, "toy", causal)
    saes = [Dense(D, 24, seed=3), Identity(D), Nothing(D)]
    alone = [evaluate(sae, texts, model=model) for sae in saes]
    assert alone[0].keys() > ({"ce_score", "kl"} if causal else {"hidden_error", "hidden_error_zero"})
    toy.bytes.clear()
    for batch in texts.batches:
        toy(batch.input_ids, batch.attention_mask)
    downstream = Downstream(texts, model, keep_bytes=sum(toy.bytes[:kept]))
    n = len(texts.batches)
    for number, (sae, expected) in enumerate(zip(saes, alone, strict=True)):
        toy.since()
        result = downstream.of(sae)
        assert result == {key: expected[key] for key in result}
        assert toy.since() == (3 * n if number == 0 else n + (n - kept))


def test_one_that_fails_leaves_the_next_unharmed(toy: Toy, texts: Texts) -> None:
    class Fails(Identity):
        calls = 0

        def decode(self, code: Any) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("half way")
            return super().decode(code)

    model = LoadedModel(toy, None, "toy", True)
    downstream = Downstream(texts, model)
    with pytest.raises(RuntimeError, match="half way"):
        downstream.of(Fails(D))
    sae = Dense(D, 24, seed=3)
    result, alone = downstream.of(sae), evaluate(sae, texts, model=model)
    assert result == {key: alone[key] for key in result}


def test_a_single_evaluation_keeps_no_outputs(toy: Toy, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Downstream] = []
    init = Downstream.__init__

    def spied(self: Downstream, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Downstream, "__init__", spied)
    evaluate(Identity(D), texts, model=LoadedModel(toy, None, "toy", True))
    assert len(made) == 1 and made[0]._clean == []


def test_a_source_without_contexts_is_refused_before_anything_is_measured(toy: Toy) -> None:
    class Tensors(Texts):
        def contexts(self, split: Split, batch_size: int, limit_rows: int | None = None) -> Iterator[Contexts]:
            raise InvalidInput("captured from tensors")

        def blocks(self, split: Split, limit: int | None = None) -> Any:
            raise AssertionError("measured")

    with pytest.raises(InvalidInput, match="captured from tensors"):
        evaluate(Identity(D), Tensors(rows(40, D), []), model=LoadedModel(toy, None, "toy", True))


def test_the_smallest_limit_counts() -> None:
    assert [fewer(None, None), fewer(3, None), fewer(None, 4), fewer(5, 4)] == [None, 3, 4, 4]
