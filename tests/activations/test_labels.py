"""Every token gets the number of its own text, document or context, in streams and in blocks."""

from __future__ import annotations

import numpy as np
import torch

from apportion.activations import LabelledSource, TensorSource


def source():
    """Documents 0 to 19 of 3 to 9 rows; a row holds its document and its position."""
    document = torch.repeat_interleave(torch.arange(20), torch.arange(20) % 7 + 3)
    position = torch.cat([torch.arange(int(n)) for n in torch.bincount(document)])
    x = torch.stack([document, position], 1).float()
    return TensorSource(x, document, heldout=0.4, buffer_rows=32)


def of_rows(batch):
    return batch.x[:, 0].long(), batch.x[:, 1].long()


def test_documents_have_one_number_each():
    inner, values = source(), np.arange(20) * 10.0
    values[3] = np.nan
    whole = LabelledSource(inner, np.arange(20), np.zeros(20, np.int64), values)
    stream = whole.stream(16, 0)
    batches = [next(stream) for _ in range(12)]
    stream.close()
    for batch in [*batches, *whole.blocks("calibrate"), *whole.blocks("evaluate")]:
        document, _ = of_rows(batch)
        want = torch.where(document == 3, torch.nan, document * 10.0)
        torch.testing.assert_close(batch.target, want, equal_nan=True)


def test_contexts_have_one_number_each_in_any_order_and_the_rest_have_none():
    # Every document but the last has a context at 0; those of five rows or more a second one at 4.
    document = [*range(19), *(d for d in range(19) if d % 7 + 3 > 4)]
    start = np.array([0] * 19 + [4] * (len(document) - 19))
    values = np.array(document) + np.where(start > 0, 0.5, 0.0)
    order = np.random.default_rng(0).permutation(len(values))
    labelled = LabelledSource(source(), np.array(document)[order], start[order], values[order])
    for batch in labelled.blocks("evaluate"):
        d, p = of_rows(batch)
        want = torch.where(d == 19, torch.nan, d + torch.where(p >= 4, 0.5, 0.0))
        torch.testing.assert_close(batch.target, want, equal_nan=True)


def test_a_stream_goes_on_where_it_was_and_other_labels_are_another_source():
    def labelled(values):
        return LabelledSource(source(), np.arange(20), np.zeros(20, np.int64), values)

    first = labelled(np.arange(20.0))
    stream = first.stream(8, 1)
    next(stream)
    state = stream.state()
    want = next(stream)
    again = first.stream(8, 1, state)
    got = next(again)
    assert torch.equal(got.x, want.x) and torch.equal(got.target, want.target)
    for one in (stream, again):
        one.close()
    assert first.describe() == labelled(np.arange(20.0)).describe()
    assert first.describe() != labelled(np.arange(20.0) + 1).describe() != source().describe()
    assert first.describe()["targets"]["texts"] == 20
