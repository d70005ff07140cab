"""The loss of each token against the model's own, aligned with the tokens of a capture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from apportion.activations.contexts import TextCutter, windows_of
from apportion.activations.models import LoadedModel
from apportion.complexity import LanguageModel, Surprisal, SurprisalConfig, Text, Tools
from apportion.complexity import surprisal as module
from apportion.errors import InvalidConfig, InvalidInput

from .conftest import EASY, HARD

TEXTS = [Text("0", HARD), Text("1", "Yes."), Text("2", EASY * 3), Text("3", "of"), Text("4", HARD[:80])]


def scorer(tools: Tools, **settings: Any) -> Surprisal:
    return SurprisalConfig(model="tiny", **settings).build(tools)


def test_the_mean_is_the_models_own_loss(tools: Tools, tiny: LoadedModel) -> None:
    ids = tiny.tokenizer(EASY, return_tensors="pt")["input_ids"]
    assert ids.shape[1] <= 256
    with torch.no_grad():
        expected = float(tiny.model(input_ids=ids, labels=ids).loss)
    (done,) = scorer(tools).score([Text("0", EASY)])
    assert done.value == pytest.approx(expected, rel=1e-5)


def test_a_known_text_surprises_less_than_a_shuffled_one(tools: Tools) -> None:
    words = EASY.split()
    shuffled = " ".join(np.random.default_rng(0).permutation(words))
    plain, mixed = scorer(tools).score([Text("0", " ".join(words)), Text("1", shuffled)])
    assert plain.value + 0.5 < mixed.value
    assert scorer(tools).direction == 1


@pytest.mark.parametrize("context", [None, 16])
def test_tokens_are_those_of_a_capture(
    tools: Tools, tiny: LoadedModel, context: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 5 * 4096)  # several chunks per batch
    losses = list(scorer(tools, context=context, batch_size=3).token_losses(TEXTS))
    windows = windows_of([text.text for text in TEXTS], 0, tiny.tokenizer, context or 256)
    for own, found in zip(windows, losses, strict=True):
        expected = []
        for window in own:
            ids = torch.from_numpy(window.ids).long()
            with torch.no_grad():
                logits = tiny.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            before = -logits[:-1].gather(1, ids[1:, None]).squeeze(1)
            expected += [np.nan, *before.tolist()]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_special_tokens_give_context_but_have_no_loss(tiny: LoadedModel) -> None:
    class Opened:
        """The tokenizer's windows behind the token that begins a text, as Llama's puts it."""

        def windows(self, documents: Any, first: int) -> Any:
            found = windows_of([document.text for document in documents], first, tiny.tokenizer, 255)
            begin = np.array([tiny.tokenizer.eos_token_id], np.int32)
            return [
                [replace(w, ids=np.append(begin, w.ids), keep=np.append(False, w.keep)) for w in own]
                for own in found
            ]

    one = Surprisal(SurprisalConfig(model="tiny"), LanguageModel(tiny, Opened(), 256))
    (losses,) = one.token_losses([Text("0", EASY)])
    assert len(losses) == len(tiny.tokenizer(EASY)["input_ids"]) and np.isfinite(losses).all()


def test_a_text_without_a_prediction_is_left_out(tools: Tools) -> None:
    found = list(scorer(tools, batch_size=2).score(TEXTS))
    assert [done.id for done in found] == [text.id for text in TEXTS]
    assert [done.failure for done in found] == [None, None, None, "no token with another before it", None]


def test_a_model_that_gives_nan_scores_nothing(tiny: LoadedModel) -> None:
    class Broken(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            output = tiny.model(input_ids=input_ids, attention_mask=attention_mask)
            output.logits[0, 3] = torch.nan
            return output

    broken = replace(tiny, model=Broken().eval())
    one = Surprisal(SurprisalConfig(model="x"), LanguageModel(broken, TextCutter(tiny.tokenizer, 256), 256))
    (done,) = one.score([Text("0", EASY)])
    assert (done.value, done.failure) == (None, "the score is inf")


def test_a_model_that_predicts_nothing_is_refused(tools: Tools, tiny: LoadedModel) -> None:
    encoder = replace(tiny, causal=False)
    parts = LanguageModel(encoder, TextCutter(tiny.tokenizer, 256), 256)
    with pytest.raises(InvalidInput, match=r"predicts no next token.*give a causal language model"):
        Surprisal(SurprisalConfig(model="x"), parts)
    with pytest.raises(InvalidConfig, match=r"no way to load the model 'x'"):
        SurprisalConfig(model="x").build(Tools())


def test_settings_say_how_long_contexts_were(tools: Tools) -> None:
    assert scorer(tools).settings() == {"model": "tiny", "context": 256, "batch_size": 8}
    assert scorer(tools, context=32).settings()["context"] == 32


def test_logits_are_held_within_a_bound(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(5, 400, (5, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    whole = module.token_losses(tiny, ids, mask)
    sizes: list[int] = []
    handle = tiny.model.register_forward_hook(lambda m, args, out: sizes.append(len(out.logits)))
    try:
        for contexts in (2, 1, 0):
            monkeypatch.setattr(module, "LOGIT_BYTES", contexts * tiny.output_bytes(12))
            found = module.token_losses(tiny, ids, mask)
            torch.testing.assert_close(found, whole, equal_nan=True)
    finally:
        handle.remove()
    assert sizes == [2, 2, 1, *[1] * 10]


def test_contexts_padded_on_the_left_are_refused(tiny: LoadedModel) -> None:
    ids = torch.randint(5, 400, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    with pytest.raises(InvalidInput, match="1 of 2 contexts are padded on the left"):
        module.token_losses(tiny, ids, mask)
