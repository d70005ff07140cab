"""Tiny random models of the architectures that users have, made from transformers' configs, and their sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 97
_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_WORDS = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = {"max_position_embeddings": 64, **_WORDS, **_SMALL}
_GROUPED = dict(num_key_value_heads=2, **_TEXT)
_PIXELS = dict(image_size=8, patch_size=4, **_SMALL)


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        make: a model with random weights, given ``transformers``.
        block: path of a block whose output ``output_hidden_states`` has.
        mlp, attention: inside it, the modules whose outputs are read.
        mixer: inside it, the projection whose input is the heads side by side; empty for a model without.
        own: the block's state, among what the model returns.
        feeds: what it reads: text, images, or both.
        causal: whether it predicts next tokens.
    """

    name: str
    make: Callable[[Any], nn.Module]
    block: str
    mlp: str = "mlp"
    attention: str = "self_attn"
    mixer: str = "self_attn.o_proj"
    own: Callable[[Any], Tensor] = lambda output: output.hidden_states[1]
    feeds: Sequence[str] = ("text",)
    causal: bool = True

    @property
    def sites(self) -> list[str]:
        """Block, MLP, attention, all heads, one head."""
        inner = [self.mlp, self.attention]
        heads = [f"{self.mixer}:input", f"{self.mixer}:input.head=1"] if self.mixer else []
        return [self.block, *(f"{self.block}.{part}" for part in (*inner, *heads) if part)]

    def inputs(self, batch: int, length: int, pad: str | None = None) -> dict[str, Tensor]:
        """Random inputs; with ``pad`` ("left", "right"), each context after the first is one token shorter."""
        random = torch.Generator().manual_seed(batch * 100 + length)
        fed = {}
        if "text" in self.feeds:
            ids = torch.randint(3, WORDS, (batch, length), generator=random)
            mask = torch.ones_like(ids)
            for row in range(1, batch if pad else 0):
                mask[row, 0 if pad == "left" else length - 1] = 0
            fed |= {"input_ids": ids * mask, "attention_mask": mask}
        if "decoder" in self.feeds:
            fed["decoder_input_ids"] = torch.randint(3, WORDS, (batch, length + 1), generator=random)
        if "images" in self.feeds:
            fed["pixel_values"] = torch.randn(batch, 3, 8, 8, generator=random)
        return fed


def _gpt2(t: Any) -> nn.Module:
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **_WORDS))


def _opt(t: Any) -> nn.Module:
    sizes = {key: value for key, value in _TEXT.items() if key != "intermediate_size"}
    return t.OPTForCausalLM(t.OPTConfig(ffn_dim=32, word_embed_proj_dim=16, **sizes))


def _t5(t: Any) -> nn.Module:
    return t.T5ForConditionalGeneration(
        t.T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0, **_WORDS)
    )


def _moe(t: Any) -> nn.Module:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4}
    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**experts, **_GROUPED))


def _two_towers(config: str, model: str) -> Callable[[Any], nn.Module]:
    return lambda t: getattr(t, model)(getattr(t, config)(text_config=dict(_TEXT), vision_config=dict(_PIXELS)))


def _llama_like(family: str, config: str | None = None, **more: Any) -> Architecture:
    def make(t: Any) -> nn.Module:
        made = getattr(t, config or f"{family}Config")(**more, **_GROUPED)
        return getattr(t, f"{family}ForCausalLM")(made)

    return Architecture(family, make, "model.layers.0")


_T5_TEXT = ("text", "decoder")
_TOWERS = ("text", "images")
_OLD = {"mlp": "mlp", "attention": "self_attn", "mixer": "self_attn.out_proj", "causal": False, "feeds": _TOWERS}

ARCHITECTURES = [
    Architecture("GPT2", _gpt2, "transformer.h.0", attention="attn", mixer="attn.c_proj"),
    Architecture(
        "GPTNeoX",
        lambda t: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_TEXT)),
        "gpt_neox.layers.0",
        attention="attention",
        mixer="attention.dense",
    ),
    *(_llama_like(family) for family in ("Llama", "Qwen2", "Phi3")),
    _llama_like("Mistral", sliding_window=4),
    _llama_like("Mixtral", num_local_experts=4),
    _llama_like("Qwen3", head_dim=8),
    _llama_like("Gemma2", head_dim=8),
    _llama_like("Gemma3", "Gemma3TextConfig", head_dim=8),
    Architecture("Qwen3Moe", _moe, "model.layers.0", mlp="mlp.experts"),
    Architecture("OPT", _opt, "model.decoder.layers.0", mlp="fc2", mixer="self_attn.out_proj"),
    Architecture(
        "Mamba",
        lambda t: t.MambaForCausalLM(t.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **_WORDS)),
        "backbone.layers.0",
        mlp="mixer",
        attention="mixer.out_proj",
        mixer="",
        own=lambda output: output.hidden_states[0],  # the embeddings are not among them
    ),
    Architecture(
        "T5 encoder",
        _t5,
        "encoder.block.0",
        mlp="layer.1.DenseReluDense",
        attention="layer.0.SelfAttention",
        mixer="layer.0.SelfAttention.o",
        own=lambda output: output.encoder_hidden_states[1],
        feeds=_T5_TEXT,
        causal=False,
    ),
    Architecture(
        "T5 decoder",
        _t5,
        "decoder.block.0",
        mlp="layer.2.DenseReluDense",
        attention="layer.1.EncDecAttention",
        mixer="layer.1.EncDecAttention.o",
        own=lambda output: output.decoder_hidden_states[1],
        feeds=_T5_TEXT,
        causal=False,
    ),
    Architecture(
        "BERT",
        lambda t: t.BertModel(t.BertConfig(**_TEXT)),
        "encoder.layer.0",
        mlp="output.dense",
        attention="attention",
        mixer="attention.output.dense",
        causal=False,
    ),
    Architecture(
        "ModernBERT",
        lambda t: t.ModernBertModel(t.ModernBertConfig(cls_token_id=1, sep_token_id=2, **_TEXT)),
        "layers.0",
        attention="attn",
        mixer="attn.Wo",
        causal=False,
    ),
    Architecture(
        "ViT",
        lambda t: t.ViTModel(t.ViTConfig(**_PIXELS)),
        "layers.0",
        attention="attention",
        mixer="attention.o_proj",
        feeds=("images",),
        causal=False,
    ),
    Architecture(
        "DINOv2",
        lambda t: t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in _PIXELS.items() if k != "intermediate_size"})),
        "encoder.layer.0",
        attention="attention",
        mixer="attention.o_proj",
        feeds=("images",),
        causal=False,
    ),
    *(
        Architecture(
            f"{name} {tower}",
            _two_towers(f"{name}Config", f"{name}Model"),
            f"{tower}_model.encoder.layers.0",
            own=lambda output, part=f"{tower}_model_output": output[part].hidden_states[1],
            **_OLD,
        )
        for name in ("CLIP", "Siglip")
        for tower in ("text", "vision")
    ),
]
