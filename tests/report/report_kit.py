"""A small language model on hostile texts, its store and a few SAEs: all that a page is made of, in seconds."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import apportion as ap
from apportion.activations import LoadedModel, StoreSource, capture_to_store
from apportion.activations.texts import Document

from ..training.training_kit import D_IN, config, settings

SCRIPT = "<script>document.title='broken'</script>"
HOSTILE = (SCRIPT, "</script><b>bold", "<!--", "&amp;", "<img/src=x/onerror=alert(1)>", "\u2028")
WORDS = (*HOSTILE, *(f"word{i}" for i in range(50)))
KINDS, K = ("token_choice", "mutual_choice"), (3, 6)


class Speaker(nn.Module):
    """Embeds tokens, mixes each with those before it, and predicts the next."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, D_IN)
        self.block = nn.Linear(D_IN, D_IN)
        self.head = nn.Linear(D_IN, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        x = self.embed(input_ids)
        x = self.block(x + 0.5 * x.roll(1, 1))
        return SimpleNamespace(logits=self.head(x))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def speaker() -> LoadedModel:
    """With a tokenizer whose every word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*WORDS, "[UNK]"))}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    with torch.random.fork_rng():
        model = Speaker(len(fast)).eval().requires_grad_(False)
    return LoadedModel(model, fast, "speaker", causal=True)


def documents() -> list[Document]:
    """Of 48 words each; some name themselves in markup."""
    draw = random.Random(0)
    texts = [" ".join([SCRIPT, *draw.choices(WORDS, k=47)]) for _ in range(120)]
    return [Document(f"<i>text {i}</i>", text) for i, text in enumerate(texts)]


def store(folder: Path, model: LoadedModel) -> StoreSource:
    """The outputs of the model's block on ``documents``."""
    capture_to_store(model, "block", documents(), folder, context=24)
    return StoreSource(folder, heldout=0.5)


def trained(source: ap.Source, folder: Path) -> dict[str, ap.SAE | str | Path]:
    """Folders of SAEs of two methods at two k, under names with markup in them."""
    runs = {f"{kind}-k{k}": config(kind, k) for kind in KINDS for k in K}
    ap.train(runs, source, folder, settings(40))
    return {f"<b>{name}": folder / name for name in runs}
