"""The memory of a capture: counted alike with and without numbers, and no copy more than it says."""

from __future__ import annotations

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from apportion.activations import capture_to_store, load_documents, store
from apportion.activations.memory import capture_memory

from .conftest import LAYER


def test_the_meta_device_counts_what_a_real_pass_holds(tiny):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.device("meta"):
        shape = transformers.AutoModelForCausalLM.from_config(tiny.model.config)
    sizes = {"context": 32, "batch_size": 4, "shard_rows": 100}
    real, counted = (capture_memory(model, [LAYER], **sizes) for model in (tiny.model, shape))
    assert real.weights == counted.weights and real.shard == counted.shard == 100 * 256 * 4
    assert real.parameters == counted.parameters == sum(p.numel() for p in tiny.model.parameters())
    # What attention holds inside one operation is not the same on the two devices.
    assert counted.batch == pytest.approx(real.batch, rel=0.1)
    one = 4 * 32 * 256 * 4
    assert 4 * one <= real.batch <= 16 * one
    half = capture_memory(shape, [LAYER, "gpt_neox.layers.0"], dtype="bfloat16", **sizes)
    assert half.shard == 2 * real.shard // 2 and half.total == half.weights + half.batch + half.shard


def test_a_shard_is_freed_once_it_is_written(tiny, tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = 0
    extract = store.extract_rows

    def watched(*args, **options):
        nonlocal most
        rows = extract(*args, **options)
        alive.extend(weakref.ref(tensor) for tensor in rows.values())
        most = max(most, sum(ref() is not None for ref in alive))
        return rows

    monkeypatch.setattr(store, "extract_rows", watched)
    # Written in place, so that no time decides what is still there.
    monkeypatch.setattr(ThreadPoolExecutor, "submit", at_once)
    texts = load_documents(["some words that make a text of several tokens " * 8] * 12)
    manifest = capture_to_store(tiny, LAYER, texts, tmp_path / "store", context=32, shard_rows=64, outliers=None)
    assert len(manifest.shards) > 3
    assert most == 1


def at_once(pool: ThreadPoolExecutor, write: Any, *args: Any) -> Future[Any]:
    """As ``ThreadPoolExecutor.submit``, in this thread."""
    done: Future[Any] = Future()
    done.set_result(write(*args))
    return done


def test_no_keys_and_values_are_kept(tiny):
    ids = torch.arange(5, 15).view(2, 5)
    assert tiny.model(input_ids=ids).past_key_values is None
