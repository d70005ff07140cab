"""Saved SAEs from folders to a comparison, and what is left out of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.activations.contexts import Contexts
from apportion.activations.models import LoadedModel
from apportion.activations.source import Split
from apportion.allocators import TokenChoiceConfig
from apportion.compare import Comparison, Interval
from apportion.errors import InvalidInput
from apportion.metrics.intervals import over_seeds

from ..conftest import make_sae
from ..test_downstream import Toy, contexts_of
from .conftest import many_documents


@pytest.fixture(scope="module")
def both(trained: dict[str, Path], rows: ap.TensorSource) -> Comparison:
    return ap.compare(trained, rows, oracle=16)


def of_seed(trained: dict[str, Path], seed: int) -> dict[str, Path]:
    return {name: folder for name, folder in trained.items() if name.startswith(f"s{seed}/")}


def test_every_sae_is_measured_as_evaluate_does(
    both: Comparison, trained: dict[str, Path], rows: ap.TensorSource
) -> None:
    assert [sae.name for sae in both.saes] == list(trained) and both.left_out == {}
    assert len(both.notes) == 1 and "than the oracle may" in both.notes[0] and "let it give more" in both.notes[0]
    for sae in both.saes:
        alone = ap.evaluate(ap.load(trained[sae.name]), rows, oracle=16)
        for measure, value in sae.measures.items():
            if measure not in ("tokens_per_s", "dead", "never_fired"):
                assert alone[measure] == value, measure
        assert sae.measures["tokens"] == both.tokens
        assert sae.measures["dead"] is not None and sae.measures["allocation_efficiency"] is not None


class InAModel(ap.TensorSource):
    """The rows, and contexts of a model that has nothing to do with them."""

    module = "layer"

    def contexts(self, split: Split, batch_size: int, limit_rows: int | None = None) -> Iterator[Contexts]:
        self.asked = (split, limit_rows)
        yield contexts_of((12, 9, 5), 0)
        yield contexts_of((7, 3), 1)


def test_what_a_model_makes_of_every_sae_is_as_evaluate_says_in_fewer_runs(
    trained: dict[str, Path], rows: ap.TensorSource
) -> None:
    torch.manual_seed(0)
    toy = Toy(rows.d_in).eval()
    model = LoadedModel(toy, None, "toy", causal=True)
    source = InAModel(rows._rows.x, torch.arange(len(rows._rows.x)) // 8, heldout=0.3)
    some = of_seed(trained, 0)
    found = ap.compare(some, source, model=model, limit=90, downstream_limit=70, oracle=None)
    assert source.asked == ("evaluate", 70)
    assert toy.since() == 2 * (3 + len(some) - 1)
    for sae in found.saes:
        alone = ap.evaluate(ap.load(trained[sae.name]), source, model=model, limit=90)
        assert {key: sae.measures[key] for key in ("ce_score", "ce_zero", "kl")} == {
            key: alone[key] for key in ("ce_score", "ce_zero", "kl")
        }
    with pytest.raises(InvalidInput, match="TensorSource has no contexts"):
        ap.compare(some, rows, model=model)


def test_tables_are_over_seeds(both: Comparison) -> None:
    assert [(point.method, point.k) for point in both.points] == [
        *(("token_choice", 3), ("token_choice", 6), ("mutual_choice", 3), ("mutual_choice", 6))
    ]
    point = both.points[1]
    fvu = [sae.measures["fvu"] or 0 for sae in both.saes if (sae.method, sae.k) == ("token_choice", 6)]
    assert point.measures["fvu"] == over_seeds(fvu) and len(fvu) == 2
    found = [one for one in both.differences if one.measure == "fvu"]
    assert found and all((one.method, one.reference) == ("mutual_choice", "token_choice") for one in found)
    assert all(one.value.n == 2 and one.value.over == "seeds" for one in found)
    assert {one.measure for one in both.differences} == {"fvu", "cosine"}


def test_one_seed_is_over_documents(trained: dict[str, Path], rows: ap.TensorSource) -> None:
    found = ap.compare(of_seed(trained, 0), rows, oracle=None)
    fvu = found.points[0].measures["fvu"]
    assert (
        fvu.over == "documents" and fvu.n == found.documents and fvu.half is not None and 0 < fvu.half < fvu.mean
    )
    # The bootstrap of L0 is that of a ratio over clusters, which evaluation has in closed form.
    l0, se = found.points[3].measures["l0"], found.saes[3].measures["l0_se"]
    assert se is not None and l0.half == pytest.approx(2.03 * se, rel=0.1)
    assert found.points[0].measures["l0"].half == pytest.approx(0, abs=1e-12), "TopK gives k to every token"
    assert all(one.value.over == "documents" for one in found.differences if one.measure == "fvu")
    assert found.notes == ()


def test_the_redrawn_measures_are_those_of_the_tokens_of_these_documents(
    trained: dict[str, Path], rows: ap.TensorSource
) -> None:
    """Each document once is the evaluation itself: the sums that are drawn from add up to L0 and FVU."""
    from apportion.compare.compare import _spread_by_document

    spread = _spread_by_document(rows, None)
    measures = ap.evaluate(ap.load(trained["s0/mutual_choice-k3"]), rows, per_document=True)
    errors, features, tokens = (
        torch.tensor(measures[f"document_{what}"], dtype=torch.float64)
        for what in ("error", "features", "tokens")
    )
    assert spread is not None and len(spread) == len(errors)
    assert float(errors.sum() / spread.sum()) == pytest.approx(measures["fvu"], rel=1e-9)
    assert float(features.sum() / tokens.sum()) == pytest.approx(measures["l0"], rel=1e-12)


def test_few_documents_have_no_interval_and_it_says_so(trained: dict[str, Path], rows: ap.TensorSource) -> None:
    found = ap.compare(of_seed(trained, 0), rows, limit=64, oracle=None)
    assert found.documents == 8 and found.points[0].measures["fvu"].half is None
    assert all(one.excludes_zero is None for one in found.differences)
    (note,) = found.notes
    assert note.startswith("8 documents are too few for an interval within one seed, which takes 20")


def test_a_single_point_says_that_it_is_no_front(trained: dict[str, Path], rows: ap.TensorSource) -> None:
    some = {name: trained[f"s0/{name}"] for name in ("token_choice-k3", "token_choice-k6", "mutual_choice-k6")}
    point, interval = ap.compare(some, rows, oracle=None).notes
    assert point.startswith("mutual_choice has one point, k = 6, and no front")
    assert interval.startswith(
        "mutual_choice less token_choice at k = 6 has no interval, for on some of the 1000"
    )


def test_an_oracle_that_may_give_all_that_codes_have_needs_no_note(
    trained: dict[str, Path], rows: ap.TensorSource
) -> None:
    assert ap.compare(of_seed(trained, 0), rows, oracle=64).notes == ()


def test_methods_without_a_common_seed_say_so(trained: dict[str, Path], rows: ap.TensorSource) -> None:
    some = {n: f for n, f in trained.items() if n.startswith(("s0/token", "s1/mutual"))}
    found = ap.compare(some, rows, oracle=None)
    assert found.differences == () and "token_choice and mutual_choice have no seed in common" in found.notes[-1]


def test_what_cannot_be_compared_is_left_out_and_the_rest_is_made(
    trained: dict[str, Path], rows: ap.TensorSource, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged-k3"
    shutil.copytree(trained["s0/token_choice-k3"], damaged)
    (damaged / "sae.safetensors").write_bytes(b"")

    class Broken(ap.SAE):
        def read(self, x: torch.Tensor) -> ap.Trace:
            raise RuntimeError("out of luck")

        encode = read  # type: ignore[assignment]

    broken = Broken(ap.SAEConfig(d_in=16, d_sae=64, allocator=TokenChoiceConfig.for_k(3)))
    first = trained["s0/token_choice-k3"]
    saes = {
        "s0/token_choice-k3": first,
        "damaged": damaged,
        "narrow": make_sae(TokenChoiceConfig.for_k(3), d_in=24),
        "wide": make_sae(TokenChoiceConfig.for_k(3), d_in=16, d_sae=65),
        "broken": broken,
        "again/token_choice-k3": first,
        "mutual_choice-k3": trained["s0/mutual_choice-k3"],
    }
    found = ap.compare(saes, rows, oracle=None)
    assert [sae.name for sae in found.saes] == ["s0/token_choice-k3", "mutual_choice-k3"]
    words = {
        "damaged": "does not match sae.json",
        "narrow": "activations of width 16 and the SAE reads width 24",
        "wide": "it has 65 features and s0/token_choice-k3 64; compare SAEs of one width",
        "broken": "measuring it failed (RuntimeError: out of luck)",
        "again/token_choice-k3": "it is token_choice with k = 3 and the seed of s0/token_choice-k3",
    }
    assert found.left_out.keys() == words.keys()
    for name, part in words.items():
        assert part in found.left_out[name] and "\n" not in found.left_out[name]


def test_an_sae_that_does_not_say_where_it_comes_from_is_compared_with_a_note(rows: ap.TensorSource) -> None:
    found = ap.compare({"x": make_sae(TokenChoiceConfig.for_k(3), d_in=16)}, rows, oracle=None)
    assert len(found.saes) == 1 and found.notes[0].startswith("x does not say what it was trained on")
    assert found.points[0].measures["tokens"] == Interval(found.tokens, None, 1)


def test_nothing_to_compare_is_refused(trained: dict[str, Path], rows: ap.TensorSource) -> None:
    with pytest.raises(InvalidInput, match="0 SAEs to compare"):
        ap.compare({}, rows)
    with pytest.raises(
        InvalidInput, match="none of the 4 SAEs can be compared; s0/token_choice-k3: it was trained"
    ):
        ap.compare(of_seed(trained, 0), many_documents(split_seed=1))
