"""Models fed with tensors: rows equal the model's own hidden states, and a store of them keeps every law."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from apportion.activations import Item, LiveSource, LoadedModel, StoreSource, capture_to_store
from apportion.activations.capture import capture
from apportion.activations.manifest import MANIFEST, PROGRESS
from apportion.activations.texts import Document
from apportion.errors import InvalidConfig, InvalidInput

from .test_store import Interrupted, bytes_of, cut_off

SIZES = [(16, 16), (16, 24)]


def images(n: int, *, sizes=((16, 16),), target: bool = False) -> list[Item]:
    generator = torch.Generator().manual_seed(0)
    return [
        Item(
            f"image {i}",
            {"pixel_values": torch.randn(3, *sizes[i % len(sizes)], generator=generator)},
            float(i) if target else None,
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def vit() -> tuple[LoadedModel, str]:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
    )
    torch.manual_seed(0)
    model = transformers.ViTModel(config).eval().requires_grad_(False)
    layer = next(name for name, _ in model.named_modules() if name.endswith(("layer.1", "layers.1")))
    return LoadedModel(model, None, "a tiny vision transformer", causal=False), layer


@pytest.fixture
def convolution(patches) -> LoadedModel:
    return LoadedModel(patches.eval().requires_grad_(False), None, "patches", causal=False)


def test_a_vision_transformer_into_a_store_and_back(vit, tmp_path):
    loaded, layer = vit
    items = images(60, target=True)
    manifest = capture_to_store(loaded, layer, items, tmp_path, batch_size=8, shard_rows=256)
    assert manifest.rows == 60 * 17 and len(manifest.shards) > 2 and manifest.modules == {layer: 16}
    with torch.no_grad():
        pixels = torch.stack([item.inputs["pixel_values"] for item in items])
        expected = loaded.model(pixel_values=pixels, output_hidden_states=True).hidden_states[2]
    source = StoreSource(tmp_path, heldout=0.4)
    live = LiveSource(loaded, layer, items, heldout=0.4)
    assert source.documents == live.documents == [item.id for item in items]
    for split in ("calibrate", "evaluate"):
        stored, made = (list(s.blocks(split)) for s in (source, live))
        for blocks in (stored, made):
            x, at, document, target = (
                torch.cat([getattr(b, column) for b in blocks])
                for column in ("x", "position", "document", "target")
            )
            torch.testing.assert_close(x, expected[document, at], rtol=1e-4, atol=1e-5)
            assert torch.equal(target, document.float())
        with pytest.raises(InvalidInput, match="captured from tensors"):
            source.contexts(split)
        with pytest.raises(InvalidInput, match="captured from tensors"):
            live.contexts(split)


def test_any_torch_module_with_items_of_several_shapes(convolution, tmp_path):
    items = images(40, sizes=SIZES)
    capture_to_store(convolution, ["blocks.0", "blocks.1"], items, tmp_path, batch_size=4, shard_rows=100)
    source = StoreSource(tmp_path, "blocks.1", heldout=0.4)
    seen = 0
    for block in source.blocks("evaluate"):
        for number in block.document.unique().tolist():
            inputs = {"pixel_values": items[number].inputs["pixel_values"][None]}
            expected = capture(convolution.model, ["blocks.1"], inputs)["blocks.1"][0]
            torch.testing.assert_close(block.x[block.document == number], expected, rtol=1e-5, atol=1e-6)
            seen += 1
    assert seen > 3


def test_items_resume_to_the_same_bytes_and_streams_to_the_same_batches(convolution, tmp_path):
    items = images(50, sizes=SIZES)
    # Without a bound on norms, for which more items would be read before the first shard.
    options = {"batch_size": 4, "shard_rows": 64, "max_rows": 700, "outliers": None}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert capture_to_store(convolution, "blocks.1", items, whole, **options).rows == 700
    with pytest.raises(Interrupted):
        capture_to_store(convolution, "blocks.1", cut_off(items, 32), broken, **options)
    assert (broken / PROGRESS).exists() and not (broken / MANIFEST).exists()
    capture_to_store(convolution, "blocks.1", items, broken, **options)
    assert bytes_of(whole) == bytes_of(broken)
    changed = [Item(item.id, {"pixel_values": item.inputs["pixel_values"] + 1}) for item in items]
    with pytest.raises(InvalidConfig, match="made from"):
        capture_to_store(convolution, "blocks.1", changed, broken, **options)
    live = LiveSource(convolution, "blocks.1", items, buffer_rows=200)
    stream = live.stream(64, 0)
    next(stream)
    state = json.loads(json.dumps(stream.state()))
    expected = [batch.x for batch in itertools.islice(stream, 3)]
    resumed = live.stream(64, 0, state)
    assert all(torch.equal(next(resumed).x, x) for x in expected)
    stream.close()
    resumed.close()


def test_token_ids_as_tensors_leave_padding_and_special_tokens_out(minilm, tmp_path):
    text = minilm.tokenizer("a few words", padding="max_length", max_length=12, return_tensors="pt")
    items = [
        Item("a", {name: value[0] for name, value in text.items()}),
        Item("b", {"input_ids": text["input_ids"][0]}),
    ]
    manifest = capture_to_store(minilm, "encoder.layer.0", items, tmp_path)
    assert manifest.rows == 6


def test_unusable_items(convolution, tmp_path):
    for inputs in ({}, {"pixel_values": [1.0]}):
        with pytest.raises(InvalidInput, match="'x' has inputs that are no tensors"):
            Item("x", inputs)
    items = images(3)
    cases = [
        ([items[0], Document("x", "text")], InvalidInput, "no Item; do not mix"),
        (
            [Item("x", {"pixel_values": torch.zeros(4, 16, 16)})],
            InvalidInput,
            r"Patches cannot run on .*channels",
        ),
        ([Item("x", {"pixels": torch.zeros(3, 16, 16)})], InvalidInput, "Patches cannot run on .*'pixels'"),
        ([items[0], Item("x", items[1].inputs, float("nan"))], InvalidInput, "'x' has the target nan"),
    ]
    for number, (given, error, message) in enumerate(cases):
        with pytest.raises(error, match=message):
            capture_to_store(convolution, "blocks.0", given, tmp_path / str(number))
    with pytest.raises(InvalidConfig, match="shard_rows = 10 is below the 16 rows"):
        capture_to_store(convolution, "blocks.0", items, tmp_path / "small", shard_rows=10)
    with pytest.raises(InvalidInput, match="no tokenizer"):
        capture_to_store(convolution, "blocks.0", [Document("x", "text")], tmp_path / "text")
