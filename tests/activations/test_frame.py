"""What stands around a context, and which positions take part: the reference are the tokenizer's own windows."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apportion.activations import LiveSource, LoadedModel, StoreSource, capture_to_store
from apportion.activations.contexts import check_context, windows_of
from apportion.activations.manifest import MANIFEST, Manifest
from apportion.activations.texts import Document
from apportion.errors import ApportionWarning, InvalidConfig

from .conftest import LAYER
from .tokenizers_kit import ALL, CORPUS, llama2, minilm, tiny_lm

TEXTS = [CORPUS[0] * 3, "short", CORPUS[1] + " [UNK] <s> and <|im_start|> again " + CORPUS[2]]


def own_windows(tokenizer: Any, text: str, context: int) -> list[list[int]]:
    """The windows that the tokenizer itself makes."""
    cut = tokenizer(text, truncation=True, max_length=context, return_overflowing_tokens=True, padding=False)
    return list(cut["input_ids"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("context", [4, 17])
def test_auto_gives_the_windows_of_the_tokenizer(name: str, context: int) -> None:
    tokenizer = ALL[name]()
    for text, own in zip(TEXTS, windows_of(TEXTS, 0, tokenizer, context, spans=True), strict=True):
        kept = [ids for ids in own_windows(tokenizer, text, context) if set(ids) - set(tokenizer.all_special_ids)]
        assert [window.ids.tolist() for window in own] == kept
        assert [w.start for w in own] == np.cumsum([0, *(w.rows for w in own)])[:-1].tolist()
        for window in own:
            assert window.keep.tolist() == [i not in tokenizer.all_special_ids for i in window.ids]


@pytest.mark.parametrize("name", ["smollm2", "llama2", "tiny-lm", "tiktoken"])
def test_a_bos_is_put_in_front_or_taken_away_and_has_its_room(name: str) -> None:
    tokenizer = ALL[name]()
    body = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    (with_bos,), (without,) = (windows_of(TEXTS[:1], 0, tokenizer, 9, bos=bos) for bos in ("yes", "no"))
    assert {int(w.ids[0]) for w in with_bos} == {tokenizer.bos_token_id}
    assert not any(w.keep[0] for w in with_bos) and {len(w.ids) for w in with_bos[:-1]} == {9}
    assert [i for w in with_bos for i in w.ids[1:]] == body
    assert {len(w.ids) for w in without[:-1]} == {9} and [i for w in without for i in w.ids] == body
    written = windows_of([tokenizer.bos_token + "word " * 3], 0, tokenizer, 64, bos="yes")[0][0]
    added = 2 if own_windows(tokenizer, "a", 64)[0][0] == tokenizer.bos_token_id else 1
    assert (written.ids == tokenizer.bos_token_id).sum() == added


@pytest.mark.parametrize("name", ["minilm", "llama2", "unigram", "smollm2"])
def test_the_first_positions_are_not_kept_and_all_others_are(name: str) -> None:
    tokenizer = ALL[name]()
    (plain,), (cut,) = (windows_of(TEXTS[:1], 0, tokenizer, 12, True, skip_first=n) for n in (0, 3))
    for before, after in zip(plain, cut, strict=False):
        assert (before.ids == after.ids).all() and not after.keep[:3].any()
        assert (before.keep[3:] == after.keep[3:]).all()
        assert after.span is not None and before.span is not None and after.span[0] > before.span[0]


@pytest.mark.parametrize(
    ("tokenizer", "settings", "message"),
    [
        (minilm, {"skip_first": 15}, r"skip_first = 15 leaves no token of a context of 16; expected 0 to 14"),
        (tiny_lm, {"skip_first": 16}, r"skip_first = 16 leaves no token .* expected 0 to 15"),
        (tiny_lm, {"skip_first": -1}, "skip_first = -1 leaves no token"),
        (minilm, {"bos": "yes"}, r"bos = 'yes' and BertTokenizer knows no token that begins a text"),
        (tiny_lm, {"bos": "maybe"}, r"bos = 'maybe' is none of auto, yes and no"),
    ],
)
def test_what_leaves_no_token_is_refused(tokenizer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        check_context(None, tokenizer(), 16, **settings)


def test_a_bos_that_is_known_and_not_added_gets_a_sentence() -> None:
    with pytest.warns(ApportionWarning, match=r"of tiny knows the BOS '<\|endoftext\|>' and adds none"):
        check_context(None, tiny_lm(), 16, name="tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_context(None, tiny_lm(), 16, bos="no")
        check_context(None, tiny_lm(), 16, bos="yes")
        check_context(None, minilm(), 16)
        check_context(None, llama2(), 16)


def test_stores_and_live_sources_have_the_same_rows(tiny: LoadedModel, tmp_path: Path) -> None:
    documents = [Document(str(i), CORPUS[i % 3] * (1 + i % 4)) for i in range(30)]
    cut: dict[str, Any] = {"context": 16, "skip_first": 2, "bos": "yes"}
    manifest = capture_to_store(tiny, LAYER, documents, tmp_path / "s", **cut)
    store, live = StoreSource(tmp_path / "s"), LiveSource(tiny, LAYER, documents, **cut)
    assert (manifest.settings.skip_first, manifest.settings.bos) == (2, "yes")
    for one, other in zip(store.blocks("evaluate"), live.blocks("evaluate"), strict=True):
        assert one.x.shape == other.x.shape and bool((one.x - other.x).abs().max() < 1e-5)
    for source in (store, live):
        assert source.describe()["skip_first"] == 2 and source.describe()["bos"] == "yes"
        for contexts in source.contexts("evaluate"):
            assert bool((contexts.input_ids[:, 0] == tiny.tokenizer.bos_token_id).all())
            assert not contexts.keep[:, :2].any()
    with pytest.raises(InvalidConfig, match=r"skip_first was 2 and is now 0"):
        capture_to_store(tiny, LAYER, documents, tmp_path / "s", context=16, bos="yes")
    with pytest.raises(InvalidConfig, match=r"bos was 'yes' and is now 'no'"):
        capture_to_store(tiny, LAYER, documents, tmp_path / "s", context=16, skip_first=2, bos="no")


def test_stores_of_before_have_the_defaults(store: Path) -> None:
    data = json.loads((store / MANIFEST).read_text())
    data.pop("checksum", None)
    for name in ("skip_first", "bos"):
        data["settings"].pop(name)
    old = Manifest.parse(data, MANIFEST)
    assert (old.settings.skip_first, old.settings.bos) == (0, "auto")
    assert not {"skip_first", "bos"} & set(StoreSource(store).describe())
