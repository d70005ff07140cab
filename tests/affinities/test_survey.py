"""Calibration tokens in folds: documents are whole, every pass deals them alike, and the folds are even."""

from __future__ import annotations

import torch

from apportion.affinities import FOLDS, Survey
from apportion.allocators import MutualChoiceConfig

from ..conftest import inputs, make_sae


def survey(blocks, **changes) -> Survey:
    sae = make_sae(MutualChoiceConfig.for_k(3))
    return Survey(sae.surveyed, lambda: iter(blocks), **changes)


def columns(asked: Survey) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    parts = list(asked.parts())
    return tuple(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "unit", "fold"))


def test_documents_are_whole_and_folds_even_whatever_the_blocks():
    sizes = torch.randint(5, 120, (60,), generator=torch.Generator().manual_seed(0))
    document = (torch.arange(60) * 7 % 61).repeat_interleave(sizes)
    x = inputs(len(document))
    found = [columns(survey(list(zip(x.split(n), document.split(n), strict=True)))) for n in (64, 1000, len(x))]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    _, unit, fold = found[0]
    assert torch.equal(unit, torch.arange(60).repeat_interleave(sizes))
    assert len(torch.stack([unit, fold]).unique(dim=1)[0]) == 60, "a document lies in one fold"
    rows = torch.bincount(fold, minlength=FOLDS)
    assert int(rows.max() - rows.min()) <= 120


def test_long_documents_are_cut_and_unnamed_rows_grouped():
    (_, unit, _) = columns(survey([(inputs(9000), torch.zeros(9000, dtype=torch.int64))]))
    assert torch.bincount(unit).tolist() == [4096, 4096, 808]
    (_, unit, fold) = columns(survey([inputs(100), inputs(0), inputs(60)]))
    assert torch.bincount(unit).tolist() == [64, 64, 32] and fold.unique().tolist() == [0, 1, 2]


def test_a_part_has_the_rows_of_its_folds():
    x = inputs(2000)
    whole = survey(x.split(300))
    every, _, fold = columns(whole)
    some, _, kept = columns(whole.restricted(frozenset({1, 4})))
    assert torch.equal(some, every[(fold == 1) | (fold == 4)]) and kept.unique().tolist() == [1, 4]
