"""Tokens that are not like the others: marked in stores, left out by sources, given apart by evaluations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import apportion as ap
from apportion.activations import LiveSource, StoreSource, TensorSource, capture_to_store, load_model
from apportion.activations.capture import patched
from apportion.activations.keep import beyond, check_policy, norm_bound
from apportion.activations.splits import Ranges
from apportion.cli import main
from apportion.downstream import Downstream
from apportion.errors import InvalidConfig, InvalidInput
from apportion.metrics import dominated, top_share

from .conftest import LAYER, MINILM, shared

HUGE = 300.0


@pytest.fixture(scope="module")
def sinks(tiny):
    """The small causal model with attention sinks: at ``LAYER`` every context's first state is huge."""
    with patched(tiny.model, LAYER, _with_sinks):
        yield tiny


def _with_sinks(hidden):
    changed = hidden.clone()
    changed[:, 0] *= HUGE
    return changed


@pytest.fixture(scope="module")
def store(sinks, documents, tmp_path_factory):
    out = tmp_path_factory.mktemp("sinks") / "store"
    capture_to_store(sinks, LAYER, documents[:80], out, context=64, shard_rows=2048)
    return out


@pytest.fixture(scope="module")
def live(sinks, documents):
    return LiveSource(sinks, LAYER, documents[:80], context=64, buffer_rows=2048)


def all_rows(blocks):
    return torch.cat([batch.x for batch in blocks])


def test_only_the_first_of_each_context_takes_no_part(store):
    source, whole = StoreSource(store), StoreSource(store, keep_outliers=True)
    contexts = len(whole.context_starts()[0])
    told = source.describe()["tokens"]
    assert told["outliers"] == 10 and told["left_out"] == contexts
    for split in ("calibrate", "evaluate"):
        kept, out = all_rows(source.blocks(split)), all_rows(source.left_out(split))
        assert kept.norm(dim=1).max() < told["norm_bound"] < out.norm(dim=1).min()
        assert len(kept) + len(out) == len(all_rows(whole.blocks(split)))
        assert list(whole.left_out(split)) == []
    assert source.n_train < whole.n_train and len(all_rows(source.rows())) == whole.manifest.rows - contexts
    (sentence,) = source.remarks()
    assert (
        f"{contexts:,} of {whole.manifest.rows:,} tokens" in sentence and "100% of them are the first" in sentence
    )


def test_a_limit_counts_the_rows_that_take_part_and_the_rest_lies_among_them(store):
    source = StoreSource(store)
    blocks = list(source.blocks("evaluate", 200))
    assert sum(len(block.x) for block in blocks) == 200
    place = max(int(block.document.max()) for block in blocks), int(blocks[-1].position[-1])
    rest = list(source.left_out("evaluate", 200))
    assert 0 < sum(len(block.x) for block in rest) < len(all_rows(source.left_out("evaluate")))
    assert all(
        (d, p) < place for b in rest for d, p in zip(b.document.tolist(), b.position.tolist(), strict=True)
    )


def test_training_rows_hold_no_outlier_and_the_scale_is_that_of_the_others(store, live):
    for source in (StoreSource(store, buffer_rows=2048), live):
        stream = source.stream(512, 0)
        bound = source.describe()["tokens"]["norm_bound"]
        rows = torch.cat([next(stream).x for _ in range(8)])
        stream.close()
        assert rows.norm(dim=1).max() < bound


def test_live_and_stored_rows_are_the_same(store, live):
    source = StoreSource(store)
    bounds = [one.describe()["tokens"]["norm_bound"] for one in (source, live)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    for name in ("blocks", "left_out"):
        pair = [all_rows(getattr(one, name)("evaluate")) for one in (source, live)]
        assert torch.allclose(*pair, rtol=1e-4, atol=1e-4)
    kept = [[c.keep for c in one.contexts("evaluate", 8)] for one in (source, live)]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert live.remarks() and source.remarks()


def test_kept_positions_of_contexts_are_the_rows_of_the_blocks(store, sinks):
    source = StoreSource(store)
    rows = []
    for contexts in source.contexts("evaluate", 8):
        assert not contexts.keep[:, 0].any()  # the sink is no special token, and takes no part
        states = sinks.model(**contexts.inputs(), output_hidden_states=True).hidden_states[2]
        rows.append(states[contexts.keep])
    assert torch.allclose(torch.cat(rows), all_rows(source.blocks("evaluate")), rtol=1e-4, atol=1e-4)


def test_patching_leaves_tokens_that_take_no_part_as_the_model_made_them(store, sinks):
    source = StoreSource(store)
    seen = []

    def look(hidden):
        seen.append(hidden.clone())
        return hidden

    class Nothing(ap.SAE):
        def decode(self, code):
            return torch.zeros(*code.shape, self.d_in)

    sae = Nothing(
        ap.SAEConfig(d_in=source.d_in, d_sae=8, allocator=ap.recipe("topk").make(8, 8, 1, 0).sae.allocator)
    )
    model = replace(sinks, causal=True)
    run = Downstream(source, model, limit=100)
    with patched(sinks.model, LAYER.replace("1", "2"), look):
        run.of(sae)
    clean, restored, zeroed = seen[0], seen[1], seen[2]
    assert torch.equal(clean[:, 0], restored[:, 0]) and torch.equal(clean[:, 0], zeroed[:, 0])
    assert not torch.equal(clean[:, 1:], restored[:, 1:])


def test_an_evaluation_gives_both_parts_apart(store, tmp_path):
    source = StoreSource(store, heldout=0.4)
    config = ap.recipe("mutual_choice").make(source.d_in, 512, 8, 0)
    settings = ap.TrainConfig(n_tokens=20_480, batch_size=512)
    sae = ap.train({"kept": config}, source, tmp_path, settings)["kept"]
    found = ap.evaluate(sae, source)
    assert abs(found["l0"] - 8) <= 0.16 + 2 * found["l0_se"] and found["variance_in_top_percent"] < 0.5
    assert found["left_out_tokens"] == len(all_rows(source.left_out("evaluate")))
    assert found["left_out_l0"] > 3 * found["l0"]  # no cap is applied to them
    rest, kept = all_rows(source.left_out("evaluate")), all_rows(source.blocks("evaluate"))
    spread = (rest.double() - kept.double().mean(0)).square().sum()
    naive = (rest.double() - sae.decode(sae.encode(rest)).double()).square().sum() / spread
    assert found["left_out_fvu"] == pytest.approx(float(naive))
    assert sae.metadata["source"]["tokens"]["outliers"] == 10
    with pytest.raises(InvalidInput, match=r"outliers = 10\.0 and here None"):
        check_policy(sae.metadata["source"], StoreSource(store, keep_outliers=True).describe(), "it")
    with pytest.raises(InvalidInput, match="outliers"):
        ap.compare({"kept": sae}, StoreSource(store, heldout=0.4, keep_outliers=True))
    mixed = ap.evaluate(sae, StoreSource(store, heldout=0.4, keep_outliers=True))
    assert mixed["fvu"] != found["fvu"] and "% of the variance" in dominated(mixed["variance_in_top_percent"])


def test_the_command_says_how_many_and_how_to_keep_them(store, tmp_path, capsys):
    out = str(tmp_path / "runs")
    given = ["--recipe", "topk", "--k", "4", "--d-sae", "64", "--tokens", "2048", "--batch", "256"]
    assert main(["train", str(store), "--out", out, *given]) == 0
    assert "take no part" in capsys.readouterr().err
    assert main(["evaluate", out, "--data", str(store)]) == 0
    shown = capsys.readouterr()
    assert "left_out_fvu" in shown.out and "--keep-outliers" in shown.err
    kept = str(tmp_path / "kept")
    assert main(["train", str(store), "--out", kept, *given, "--keep-outliers"]) == 0
    capsys.readouterr()
    assert main(["evaluate", kept, "--data", str(store)]) == 0  # read as it was trained
    shown = capsys.readouterr()
    assert "left_out_fvu" not in shown.out and "1 % of the tokens hold" in shown.out + shown.err


def test_a_bound_is_kept_when_a_capture_goes_on(sinks, documents, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def some(n):
        for number, document in enumerate(documents[:80]):
            if number == n:
                raise Stop
            yield document

    given = {"context": 64, "shard_rows": 512, "max_rows": 3000}
    capture_to_store(sinks, LAYER, documents[:80], tmp_path / "whole", **given)
    monkeypatch.setattr("apportion.activations.writing.MEDIAN_ROWS", 3000)
    with pytest.raises(Stop):
        capture_to_store(sinks, LAYER, some(50), tmp_path / "cut", **{**given, "max_rows": None})
    monkeypatch.setattr("apportion.activations.writing.MEDIAN_ROWS", 1)  # read no more once it is known
    capture_to_store(sinks, LAYER, documents[:80], tmp_path / "cut", **{**given, "max_rows": None})
    bounds = [StoreSource(tmp_path / name).manifest.bounds for name in ("whole", "cut")]
    assert bounds[0][LAYER] == pytest.approx(bounds[1][LAYER], rel=1e-6)


@pytest.mark.parametrize("name, module", [(MINILM, "encoder.layer.3"), ("tiny-lm", "gpt_neox.layers.3")])
def test_nothing_is_left_out_of_the_two_tame_models(name, module, documents, minilm):
    model = minilm if name == MINILM else load_model(str(shared("models/tiny-lm")))  # one without sinks
    source = LiveSource(model, module, documents[:120])
    assert source.remarks() == [] and list(source.left_out("evaluate")) == []


def test_a_bound_at_or_below_the_median_is_refused(sinks, documents, tmp_path, capsys):
    for outliers in (1.0, 0.5, -3.0, float("inf")):
        with pytest.raises(InvalidConfig, match="multiple of the median above 1"):
            TensorSource(torch.randn(100, 4), outliers=outliers)
    command = ["capture", "--model", str(shared("models/tiny-lm")), "--module", LAYER, "--outliers", "0.5"]
    data = str(shared("data/text_eval.jsonl.gz"))
    assert main([*command, "--data", data, "--out", str(tmp_path)]) == 2
    assert "outliers = 0.5" in capsys.readouterr().err


def test_bounds_of_plain_rows():
    x = torch.ones(1001, 4, dtype=torch.float64)
    x[::100] *= 25
    assert norm_bound(x, 10.0) == 20.0 and beyond(x, 20.0).sum() == 11 and not beyond(x, None).any()
    assert norm_bound(torch.zeros(5, 2), 10.0) is None and norm_bound(x, None) is None
    assert norm_bound(torch.zeros(0, 2), 10.0) is None
    source = TensorSource(x + torch.randn(1001, 4) / 9, heldout=0.5)
    assert source.describe()["tokens"]["left_out"] == 11 and TensorSource(x, outliers=None).remarks() == []


def test_ranges_without_rows_are_the_rows_that_are_left():
    random = np.random.default_rng(0)
    for _ in range(200):
        counts = random.integers(0, 5, 6)
        begins = np.concatenate([[0], (counts + random.integers(0, 3, 6)).cumsum()[:-1]])
        ranges = Ranges.of(begins, counts)
        rows = np.flatnonzero(random.random(40) < random.random())
        whole = ranges.take(np.arange(ranges.n)) if ranges.n else np.zeros(0, np.int64)
        fewer = ranges.without(rows)
        left = fewer.take(np.arange(fewer.n)) if fewer.n else np.zeros(0, np.int64)
        assert left.tolist() == [row for row in whole if row not in set(rows)]
        assert ranges.inside(rows).tolist() == [row for row in rows if row in set(whole)]


def test_variance_in_few_tokens_is_seen_and_said():
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    assert 0.01 < top_share(x) < 0.1 and dominated(top_share(x)) is None
    x[::200] *= 1000
    assert top_share(x) > 0.99 and "1 % of the tokens hold" in dominated(top_share(x))
    assert top_share(x[:99]) == 0.0 == top_share(torch.ones(200, 3)) == top_share(x[:0])
