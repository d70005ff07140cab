"""Windows that say which characters they cover: together the whole text, each what its tokens spell."""

from __future__ import annotations

from itertools import pairwise

import pytest

from apportion.activations.contexts import TextCutter
from apportion.activations.models import LoadedModel
from apportion.activations.texts import Document

TEXT = "Owners, speakers and 3,775 others met.  They talked\n\nabout the interdepartmental well-being. " * 6


def letters(text: str) -> str:
    """What a tokenizer keeps of a text that it spells in its own way."""
    return "".join(text.lower().split())


@pytest.mark.parametrize("name", ["tiny", "minilm"])
def test_spans_cover_the_text_in_order(name: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedModel = request.getfixturevalue(name)
    documents = [Document("a", TEXT), Document("b", "short")]
    plain = TextCutter(loaded.tokenizer, 24).windows(documents, 5)
    cut = TextCutter(loaded.tokenizer, 24, spans=True).windows(documents, 5)
    assert len(cut[0]) > 4 and len(cut[1]) == 1
    for document, own, bare in zip(documents, cut, plain, strict=True):
        assert [(w.ids.tolist(), w.start, w.document) for w in own] == [
            (w.ids.tolist(), w.start, w.document) for w in bare
        ]
        assert all(window.span is None for window in bare)
        spans = [window.span for window in own if window.span is not None]
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert letters("".join(document.text[slice(*span)] for span in spans)) == letters(document.text)
        for window, span in zip(own, spans, strict=True):
            spelled = loaded.tokenizer.decode(window.ids[window.keep])
            assert letters(spelled).replace("##", "") == letters(document.text[slice(*span)])
