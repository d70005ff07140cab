"""Scores become targets of the right texts, on the scale of training texts, and adaptive_k learns from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import apportion as ap
from apportion.activations import LiveSource, StoreSource, capture_to_store, load_documents, load_model
from apportion.activations.texts import Document
from apportion.analysis import labels_of
from apportion.complexity import Scored, Scores, Text
from apportion.complexity.scores import Header
from apportion.errors import InvalidInput
from apportion.metrics import spearman

from ..complexity.conftest import shared

D_IN, TEXTS, ROWS = 16, 120, 40


def scores_of(values, direction=1, starts=None, ids=None):
    header = Header(scorer="column", direction=direction)
    ids = [str(i) for i in range(len(values))] if ids is None else ids
    rows = []
    for i, value in enumerate(values):
        failed = None if np.isfinite(value) else "nobody rated it"
        start = None if starts is None else int(starts[i])
        rows.append(Scored(str(ids[i]), start, "", float(value) if failed is None else None, failed))
    return Scores(header, tuple(rows))


def source(**settings):
    """Texts of 40 tokens, each read off its first direction: the text's complexity."""
    generator = torch.Generator().manual_seed(0)
    complexity = torch.randn(TEXTS, generator=generator)
    document = torch.repeat_interleave(torch.arange(TEXTS), ROWS)
    directions = torch.randn(40, D_IN, generator=generator)
    weights = torch.rand(len(document), 40, generator=generator) ** 4
    x = weights @ directions
    x[:, 0] += 4 * complexity[document]
    return ap.TensorSource(x, document, heldout=0.4, buffer_rows=2048, **settings), complexity.numpy()


def test_scores_are_standardised_on_training_texts_complexity_upwards():
    inner, complexity = source()
    labelled = ap.with_scores(inner, scores_of(5 - 3 * complexity, direction=-1))
    training = complexity[inner.in_training()]
    want = (complexity - training.mean()) / training.std()
    for batch in labelled.blocks("calibrate"):
        np.testing.assert_allclose(batch.target.numpy(), want[batch.document.numpy()], rtol=1e-5, atol=1e-6)
    about = labelled.describe()["targets"]
    assert about["mean"] == pytest.approx(5 - 3 * training.mean()) and about["unscored"] == 0
    raw = ap.with_scores(inner, scores_of(5 - 3 * complexity, direction=-1), standardise=False)
    batch = next(raw.blocks("calibrate"))
    np.testing.assert_allclose(batch.target.numpy(), 3 * complexity[batch.document.numpy()] - 5, rtol=1e-5)


def test_bad_scores_are_counted():
    inner, complexity = source()
    for values, ids, words in (
        (complexity[:-7], None, r"of 120 texts, 7 have no score \(first: '113'\)"),
        (np.full(TEXTS, 3.0), None, r"training texts have the score 3, so no probe can be fitted"),
        (np.full(TEXTS, np.nan), None, r"none of the 120 texts has a score"),
    ):
        with pytest.raises(InvalidInput, match=words):
            ap.with_scores(inner, scores_of(values, ids=ids))
    holed = complexity.copy()
    holed[:5] = np.nan
    assert ap.with_scores(inner, scores_of(holed)).describe()["targets"]["unscored"] == 5
    with pytest.raises(InvalidInput, match="the scores belong to contexts and a TensorSource has none"):
        ap.with_scores(inner, scores_of(complexity, starts=np.zeros(TEXTS)))


def test_adaptive_k_follows_the_score_meets_k_and_resumes(tmp_path):
    inner, complexity = source()
    labelled = ap.with_scores(inner, scores_of(complexity))
    configs = {"a": ap.recipe("adaptive_k").make(D_IN, 160, 8, 0)}
    settings = ap.TrainConfig(n_tokens=40 * 256, batch_size=256)
    sae = ap.train(configs, labelled, tmp_path, settings)["a"]
    counts, truth = [], []
    for batch in inner.blocks("evaluate"):
        counts.append(sae.encode(batch.x).counts())
        truth.append(torch.from_numpy(complexity)[batch.document])
    counts, truth = torch.cat(counts), torch.cat(truth)
    assert spearman(counts, truth) > 0.8, "k follows the complexity of texts that it has not seen"
    assert sae.metadata["calibration"]["l0_fitted"] == pytest.approx(8, rel=1e-3)
    assert sae.metadata["training"]["l0_train"] == pytest.approx(8, rel=0.03)
    assert sae.metadata["source"]["targets"]["scorer"] == "column"
    again = ap.load(tmp_path / "a")
    assert torch.equal(again.encode(batch.x).counts(), sae.encode(batch.x).counts())
    with pytest.raises(InvalidInput, match=r"run 'a' learns from a score of every text .* give scores"):
        ap.train(configs, inner, tmp_path / "other", settings)
    with pytest.raises(ap.ApportionError, match="with other source"):
        ap.train(configs, ap.with_scores(inner, scores_of(-complexity)), tmp_path, settings)


def test_a_front_is_a_list_of_budgets():
    make = ap.recipe("adaptive_k").make
    for k in (0.5, 3, 8, 16.5, 64):
        assert make(D_IN, 256, k, 0).sae.allocator.mean_k == k
    published = ap.recipe("adaptive_k").published("pile")
    run = published.make(768, published.d_sae, 80, 0)
    budget = run.sae.allocator.budget
    assert budget.bounds == (20, 320) and budget.slope == 0.6 and budget.clip == (0, 10)
    assert published.train.n_steps == 1831 and published.d_sae == 16_384
    steps = published.train.n_steps
    rates = [run.lr(ap.Clock(step, steps)) for step in (0, 14, 1000, 1464, steps - 1)]
    assert rates[1:3] == pytest.approx([1e-3, 1e-3]) and rates[0] == pytest.approx(1e-3 / 15)
    assert rates[3] == pytest.approx(1e-3, rel=0.01) and rates[4] < 1e-5
    assert [objective.kind for objective in run.objectives] == ["reconstruction", "l1", "aux_k"]
    assert run.objectives[0].weight == 1 / 768 and run.objectives[1].weight == 0.005 and run.dead_after == 10_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    model = load_model(str(shared("models/tiny-lm")))
    texts = [f"Day {i}. " + "the long way round and " * (i % 5 + 1) + "home." for i in range(30)]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("scored") / "store"
    capture_to_store(model, "gpt_neox.layers.0", documents, path, context=12, batch_size=8)
    return path, model, documents


def test_contexts_of_a_store_get_their_own_scores(store):
    path, model, documents = store
    source = StoreSource(path, heldout=0.5)
    document, start = source.context_starts()
    assert len(document) > 40 and (start > 0).any()
    live = LiveSource(model, "gpt_neox.layers.0", documents, context=12, heldout=0.5)
    for ours, theirs in zip(live.context_starts(), (document, start), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(live.in_training(), source.in_training())
    scores = scores_of(np.arange(len(document)), starts=start, ids=document)
    labelled = ap.with_scores(source, scores, standardise=False)
    seen = set()
    for batch in labelled.blocks("calibrate"):
        for d, p, y in zip(batch.document, batch.position, batch.target, strict=True):
            context = int(y)
            assert document[context] == d and start[context] <= p < start[context] + 12
            seen.add(context)
    assert len(seen) > 5
    with pytest.raises(InvalidInput, match="1 have no score"):
        ap.with_scores(source, scores_of(np.arange(len(document) - 1), starts=start[:-1], ids=document[:-1]))


def pairs_of(batch):
    return list(zip(batch.document.tolist(), batch.position.tolist(), strict=True))


def test_only_last_tokens_of_contexts(store):
    path, _, _ = store
    every, last = StoreSource(path, heldout=0.5), StoreSource(path, heldout=0.5, last_only=True)
    document, start = every.context_starts()
    rows = [pair for batch in every.rows() for pair in pairs_of(batch)]
    begins = sorted(rows.index(pair) for pair in zip(document.tolist(), start.tolist(), strict=True))
    ends = {rows[at - 1] for at in [*begins[1:], len(rows)]}
    found = set()
    for part in ("calibrate", "evaluate"):
        for batch in last.blocks(part):
            found |= set(pairs_of(batch))
        own = {int(d) for batch in every.blocks(part) for d in batch.document}
        assert {d for d, _ in found} & own == own
    heldout = ~every.in_training()
    assert found == {(d, p) for d, p in ends if heldout[d]}
    assert last.n_train == len(ends) - len(found)
    assert "last_only" in last.describe() and "last_only" not in every.describe()
    with pytest.raises(InvalidInput, match="only last tokens are read"):
        last.contexts("calibrate")


@pytest.mark.parametrize("by_context", [False, True], ids=["documents", "contexts"])
def test_scores_of_other_texts_under_the_same_ids_are_refused(tmp_path, by_context):
    model = load_model(str(shared("models/tiny-lm")))
    texts = [f"Text number {n} has {n * n} apples and some pears." for n in range(30)]
    before = load_documents(texts)
    capture_to_store(model, "gpt_neox.layers.0", before, tmp_path / "s", context=32)

    def scored(documents):
        rows = []
        for number, one in enumerate(documents):
            text = Text(one.id, one.text, 0 if by_context else None, None, one.digest() if by_context else "")
            rows.append(Scored.of(text, number))
        return Scores(Header(scorer="column", direction=1), tuple(rows))

    shifted = load_documents(["A new first line.", *texts])
    for source in (StoreSource(tmp_path / "s"), LiveSource(model, "gpt_neox.layers.0", before, context=32)):
        ap.with_scores(source, scored(before))
        with pytest.raises(
            InvalidInput, match=r"of 30 texts, 30 have changed since they were scored \(first: '0'"
        ):
            ap.with_scores(source, scored(shifted))
        one = [*before[:7], replace(before[7], text="another"), *before[8:]]
        with pytest.raises(
            InvalidInput, match=r"of 30 texts, 1 have changed since they were scored \(first: '7'"
        ):
            ap.with_scores(source, scored(one))
    source = StoreSource(tmp_path / "s")
    source._reader._shards[0].header().metadata.pop("digests")  # as in a store of before
    source.digests = source._reader._read_documents()[1]
    assert source.digests == [""] * 30
    ap.with_scores(source, scored(shifted))
    old = Scores(scored(shifted).header, tuple(replace(r, digest="", document="") for r in scored(shifted).rows))
    ap.with_scores(StoreSource(tmp_path / "s"), old)
    words = {one.id: "odd" for one in before}
    labels_of(source.documents, words, StoreSource(tmp_path / "s").digests, {d.id: d.digest() for d in before})
    with pytest.raises(
        InvalidInput, match=r"30 of 30 labelled documents have another text than the one captured"
    ):
        labels_of(
            source.documents, words, StoreSource(tmp_path / "s").digests, {d.id: d.digest() for d in shifted}
        )
