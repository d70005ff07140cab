"""Laws of every source: each row once per epoch, resume to the bit, documents whole in one part, full batches."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.activations import (
    LiveSource,
    StoreSource,
    SyntheticConfig,
    SyntheticSource,
    TensorSource,
    capture_to_store,
)
from apportion.activations.scale import input_scale
from apportion.code import Code
from apportion.errors import InvalidConfig, InvalidInput
from apportion.evaluate import evaluate

from .conftest import LAYER


def numbered(n: int, **options) -> TensorSource:
    """Rows that carry their own number."""
    return TensorSource(torch.arange(n, dtype=torch.float32)[:, None].expand(n, 2).clone(), **options)


def take(stream, n: int) -> list[torch.Tensor]:
    with_closing = [batch.x for batch in itertools.islice(stream, n)]
    stream.close()
    return with_closing


@pytest.fixture(params=["store", "tensor", "live", "synthetic"])
def any_source(request):
    if request.param == "tensor":
        return numbered(3000, buffer_rows=512)
    if request.param == "synthetic":
        return SyntheticSource(SyntheticConfig(d_in=8, n_features=64, n_tokens=3000), buffer_rows=512)
    tiny, documents = request.getfixturevalue("tiny"), request.getfixturevalue("documents")
    if request.param == "live":
        return LiveSource(tiny, LAYER, documents[:60], context=64, buffer_rows=512)
    return StoreSource(request.getfixturevalue("store"), buffer_rows=2048)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(200, 1500),
    batch=st.integers(1, 700),
    buffer=st.integers(1, 2000),
    seed=st.integers(0, 2**40),
)
def test_each_row_once_per_epoch_in_full_batches(n, batch, buffer, seed):
    source = numbered(n, buffer_rows=buffer)
    stream = source.stream(batch, seed)
    epochs = 2
    rows = torch.cat(take(stream, -(-epochs * source.n_train // batch)))[: epochs * source.n_train, 0]
    assert len(rows) == epochs * source.n_train
    for epoch in rows.view(epochs, -1):
        assert len(epoch.unique()) == source.n_train
    heldout = torch.cat([b.x[:, 0] for part in ("calibrate", "evaluate") for b in blocks_or_none(source, part)])
    assert not set(heldout.tolist()) & set(rows.tolist())
    assert len(heldout) + source.n_train == n


def blocks_or_none(source, part):
    try:
        return list(source.blocks(part))
    except InvalidInput:  # with few documents a part may be empty
        return []


def test_resume_from_any_state_is_equal_to_the_bit(any_source):
    stream = any_source.stream(300, seed=3)
    states, batches = [], []
    for _ in range(40 if isinstance(any_source, TensorSource) else 16):
        states.append(json.loads(json.dumps(stream.state())))
        batches.append(next(stream))
    assert states[-1]["epoch"] > 0 or isinstance(any_source, StoreSource)
    for at in range(0, len(states) - 2, 3):
        resumed = any_source.stream(300, seed=3, state=states[at])
        assert resumed.state() == states[at]
        for expected in batches[at : at + 2]:
            found = next(resumed)
            assert torch.equal(found.x, expected.x) and torch.equal(found.document, expected.document)
            assert torch.equal(found.position, expected.position)
        assert resumed.state() == states[at + 2]
        resumed.close()
    stream.close()


def test_the_seed_gives_the_order(any_source):
    first, again, other = (take(any_source.stream(256, seed), 2) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_batches_are_full_float32_and_carry_their_columns(any_source):
    stream = any_source.stream(777, seed=0)
    for batch in itertools.islice(stream, 4):
        assert batch.x.shape == (777, any_source.d_in) and batch.x.dtype == torch.float32
        assert batch.document.dtype == batch.position.dtype == torch.int64
        assert (batch.target is None) == isinstance(any_source, TensorSource)
    stream.close()


def test_parts_share_no_document_and_blocks_are_in_order(any_source):
    found = {}
    for part in ("calibrate", "evaluate"):
        blocks = list(any_source.blocks(part))
        assert all(len(block.x) == 1024 for block in blocks[:-1])
        document = torch.cat([block.document for block in blocks])
        position = torch.cat([block.position for block in blocks])
        assert torch.equal(document, document.sort().values)
        new = torch.diff(document, prepend=torch.tensor([-1])) != 0
        assert (position[new] == 0).all() and (torch.diff(position)[~new[1:]] == 1).all()
        found[part] = set(document.tolist())
        limited = torch.cat([block.x for block in any_source.blocks(part, limit=100)])
        assert torch.equal(limited, torch.cat([block.x for block in blocks])[:100])
    stream = any_source.stream(2000, seed=0)
    trained = {d for batch in itertools.islice(stream, 3) for d in batch.document.tolist()}
    stream.close()
    assert not found["calibrate"] & found["evaluate"]
    assert not trained & (found["calibrate"] | found["evaluate"])


def test_a_batch_mixes_documents(source, documents):
    """260 documents of which a tenth hold a third of the rows; pools of a fifth of the store."""
    stream = source.stream(2048, seed=0)
    for batch in itertools.islice(stream, 6):
        assert len(batch.document.unique()) >= 100
    stream.close()


def test_a_large_tensor_is_mixed_through_a_small_buffer():
    lengths = np.random.default_rng(0).geometric(1 / 500, 2000)
    document = torch.from_numpy(np.repeat(np.arange(2000), lengths))
    source = TensorSource(torch.randn(len(document), 2), document, buffer_rows=65_536)
    stream = source.stream(2048, seed=1)
    batches = list(itertools.islice(stream, 40))
    stream.close()
    assert min(len(batch.document.unique()) for batch in batches) > 500


def test_the_split_is_by_document_and_seed():
    parts = [
        {d for b in numbered(6400, split_seed=s).blocks("evaluate") for d in b.document.tolist()}
        for s in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]
    assert 2 <= len(parts[0]) <= 25
    with pytest.raises(InvalidConfig, match="heldout"):
        numbered(100, heldout=1.0)
    with pytest.raises(InvalidInput, match="holds no row"):
        numbered(100, heldout=0.0).blocks("evaluate")


def test_live_activations_are_those_of_a_store(tiny, documents, tmp_path):
    few = documents[:40]
    capture_to_store(tiny, LAYER, few, tmp_path, context=64)
    live, stored = LiveSource(tiny, LAYER, few, context=64), StoreSource(tmp_path)
    for part in ("calibrate", "evaluate"):
        a, b = (list(source.blocks(part)) for source in (live, stored))
        for column in ("document", "position", "target"):
            assert torch.equal(*(torch.cat([getattr(x, column) for x in blocks]) for blocks in (a, b)))
        torch.testing.assert_close(torch.cat([x.x for x in a]), torch.cat([x.x for x in b]), rtol=1e-3, atol=1e-3)
        pairs = zip(live.contexts(part, 8), stored.contexts(part, 8), strict=True)
        assert all(torch.equal(x.input_ids, y.input_ids) and torch.equal(x.keep, y.keep) for x, y in pairs)


def test_a_live_source_is_evaluated_in_its_model_as_its_store_is(tiny, documents, tmp_path):
    class Nothing:
        """A codec that keeps every activation as it is."""

        d_in, d_sae = 256, 256

        def encode(self, x):
            n = len(x)
            indices = torch.arange(256).repeat(n)
            return Code(x.reshape(-1), indices, torch.arange(n + 1) * 256, 256, (n,))

        def decode(self, code):
            return code.values.view(-1, 256)

    few = documents[:40]
    capture_to_store(tiny, LAYER, few, tmp_path, context=64)
    sources = LiveSource(tiny, LAYER, few, context=64), StoreSource(tmp_path)
    live, stored = (evaluate(Nothing(), s, limit=200, downstream_limit=100, model=tiny) for s in sources)
    assert sources[0].module == LAYER
    assert live["downstream_tokens"] == stored["downstream_tokens"] > 0
    assert live["ce_clean"] == pytest.approx(stored["ce_clean"]) and live["ce_zero"] > live["ce_clean"]
    assert live["ce_patched"] == pytest.approx(live["ce_clean"], rel=1e-3)


def test_states_of_another_stream_are_refused(any_source):
    stream = any_source.stream(64, seed=1)
    state = stream.state()
    stream.close()
    with pytest.raises(InvalidInput, match="seed was 1 and is 2"):
        any_source.stream(64, seed=2, state=state)
    with pytest.raises(InvalidInput, match="resume"):
        any_source.stream(64, seed=1, state={})
    with pytest.raises(InvalidConfig, match="negative"):
        any_source.stream(64, seed=-1)


def test_a_stream_without_rows_says_so():
    stream = numbered(64, heldout=0.999999).stream(8, 0)
    with pytest.raises(InvalidInput, match="no row"):
        next(stream)
    stream.close()
    with pytest.raises(InvalidInput):
        next(stream)


def test_closing_ends_the_thread():
    import threading

    stream = numbered(3000).stream(64, 0)
    next(stream)
    assert any(thread.name == "apportion-pools" for thread in threading.enumerate())
    stream.close()
    del stream
    assert not any(thread.name == "apportion-pools" for thread in threading.enumerate())


def test_tensors_that_cannot_be_used():
    with pytest.raises(InvalidInput, match="shape"):
        TensorSource(torch.zeros(3))
    with pytest.raises(InvalidInput, match="row 1"):
        TensorSource(torch.tensor([[1.0], [float("inf")]]))
    with pytest.raises(InvalidInput, match="consecutive"):
        TensorSource(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(InvalidInput, match="target"):
        TensorSource(torch.zeros(3, 2), target=torch.zeros(2))


def test_the_callers_tensor_is_left_alone():
    x = torch.randn(640, 3, dtype=torch.float64)
    before = x.clone()
    stream = TensorSource(x).stream(64, 0)
    next(stream).x.zero_()
    stream.close()
    assert torch.equal(x, before)


@settings(max_examples=25, deadline=None)
@given(exponent=st.integers(-20, 20), d=st.integers(1, 64), shift=st.floats(-3, 3))
def test_input_scale_is_the_nearest_power_of_two(exponent, d, shift):
    x = torch.randn(200, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    base = input_scale(x + shift)
    wanted = d**0.5 / float((x - x.median(0).values).norm(dim=1).median())
    assert abs(np.log2(base / wanted)) <= 0.5
    assert input_scale((x + shift) * 2.0**exponent) == base * 2.0**-exponent


def test_a_few_huge_rows_do_not_move_the_input_scale():
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    huge = x.clone()
    huge[::100] = 25_000.0 + huge[::100]
    assert input_scale(huge) == input_scale(x) == 1.0


def test_input_scale_needs_rows_that_differ():
    with pytest.raises(InvalidInput, match="equal"):
        input_scale(torch.full((5, 3), 0.1))
    with pytest.raises(InvalidInput, match="finite"):
        input_scale(torch.tensor([[1.0], [float("nan")]]))
