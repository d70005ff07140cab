"""Hooks: what they read is the model's own hidden state, what follows does not run, what they replace counts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

from apportion.activations.capture import capture, keep_mask, patched
from apportion.activations.contexts import pad, windows_of
from apportion.errors import InvalidInput, UnknownName

from .conftest import LAYER

TEXTS = ["the quick brown fox jumps over the lazy dog", "a shorter one"]


def inputs_of(loaded, texts=TEXTS):
    return pad([own[0] for own in windows_of(texts, 0, loaded.tokenizer, 64)]).inputs()


def n_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize(
    ("fixture", "path", "layer"), [("minilm", "encoder.layer.3", 4), ("tiny", "gpt_neox.layers.2", 3)]
)
def test_equals_output_hidden_states(request, fixture, path, layer):
    loaded = request.getfixturevalue(fixture)
    inputs = inputs_of(loaded)
    with torch.no_grad():
        expected = loaded.model(**inputs, output_hidden_states=True).hidden_states[layer]
    assert torch.equal(capture(loaded.model, [path], inputs)[path], expected)


def test_forward_stops_after_the_last_module_and_leaves_no_hook(tiny):
    before = n_hooks(tiny.model)
    ran = []
    layers = tiny.model.gpt_neox.layers
    handles = [layer.register_forward_pre_hook(lambda m, a, i=i: ran.append(i)) for i, layer in enumerate(layers)]
    try:
        found = capture(tiny.model, ["gpt_neox.layers.2", "gpt_neox.layers.0"], inputs_of(tiny))
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1, 2]
    assert set(found) == {"gpt_neox.layers.0", "gpt_neox.layers.2"}
    assert n_hooks(tiny.model) == before


def test_several_modules_in_one_pass_equal_single_passes(tiny):
    inputs = inputs_of(tiny)
    paths = ["gpt_neox.layers.0", "gpt_neox.layers.3"]
    together = capture(tiny.model, paths, inputs)
    assert all(torch.equal(together[path], capture(tiny.model, [path], inputs)[path]) for path in paths)


class InPlace(torch.nn.Module):
    """What follows the first layer writes into its output; the last layer runs three times."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.shared = (
            torch.nn.Linear(4, 4),
            torch.nn.ReLU(inplace=True),
            torch.nn.Linear(4, 4),
        )

    def forward(self, x):
        x = self.relu(self.first(x))
        for _ in range(3):
            x = self.shared(x)
            x += 1
        return x


def test_what_runs_later_does_not_write_into_what_was_captured():
    model, x = InPlace(), {"x": torch.randn(1, 3, 4)}
    alone = capture(model, ["first"], x)["first"]
    assert bool((alone < 0).any())
    assert torch.equal(capture(model, ["first", "shared"], x)["first"], alone)


def test_of_a_module_that_runs_several_times_the_first_run_counts():
    model, x = InPlace(), torch.randn(1, 3, 4)
    with torch.no_grad():
        first = capture(model, ["shared"], {"x": x})["shared"]
        assert torch.equal(first, model.shared(model.relu(model.first(x))))
        seen = []
        with patched(model, "shared", lambda hidden: seen.append(hidden.clone()) or hidden * 0):
            out = [model(x) for _ in range(2)]
        expected = torch.zeros(1, 3, 4)
        for _ in range(2):
            expected = model.shared(expected + 1)
        assert len(seen) == 2 and all(torch.equal(hidden, first) for hidden in seen)
        assert all(torch.equal(o, expected + 1) for o in out)
    assert n_hooks(model) == 0 and not model._forward_pre_hooks


def test_a_model_that_cannot_run_says_so_in_one_sentence(tiny, patches, monkeypatch):
    ids, before = torch.tensor([[1, 10**6]]), n_hooks(tiny.model)
    with pytest.raises(InvalidInput, match=r"GPTNeoXForCausalLM cannot run on inputs input_ids \(1, 2\) \(index"):
        capture(tiny.model, [LAYER], {"input_ids": ids})
    with pytest.raises(InvalidInput, match=r"Patches cannot run .*unexpected keyword"):
        capture(patches, ["blocks.0"], {"pixels": ids})
    assert n_hooks(tiny.model) == before and n_hooks(patches) == 0

    def exhausted(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(patches.cut, "forward", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        capture(patches, ["blocks.0"], {"pixel_values": torch.zeros(1, 3, 4, 4)})


def test_any_module_fed_with_pixels(patches):
    pixels = {"pixel_values": torch.randn(2, 3, 12, 8)}
    hidden = capture(patches, ["blocks.1"], pixels)["blocks.1"]
    assert hidden.shape == (2, 6, 8)
    assert patches.ran == [0]
    assert keep_mask(pixels, like=hidden).shape == (2, 6)


def test_output_that_is_no_hidden_state(patches, minilm):
    with pytest.raises(InvalidInput, match=r"'cut'.*\(2, 8, 3, 2\)"):
        capture(patches, ["cut"], {"pixel_values": torch.randn(2, 3, 12, 8)})
    with pytest.raises(InvalidInput, match=r"pooler.*\(2, 384\)"):
        capture(minilm.model, ["pooler"], inputs_of(minilm))
    assert n_hooks(patches) == 0


def test_module_that_is_unknown_or_never_runs(tiny, patches):
    with pytest.raises(UnknownName, match=r"'gpt_neox\.layers\.2'"):
        capture(tiny.model, ["gpt_neox.layer.2"], inputs_of(tiny))
    patches.idle = torch.nn.Linear(8, 8)
    with pytest.raises(InvalidInput, match="'idle' never ran"):
        capture(patches, ["blocks.0", "idle"], {"pixel_values": torch.randn(1, 3, 4, 4)})


def test_keep_mask(minilm):
    inputs = inputs_of(minilm)
    keep = keep_mask(inputs, minilm.tokenizer.all_special_ids)
    assert keep.shape == inputs["input_ids"].shape
    assert (keep.sum(1) == inputs["attention_mask"].sum(1) - 2).all()
    assert not keep[:, 0].any()
    assert torch.equal(keep_mask({"input_ids": torch.tensor([[5, 6]])}), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InvalidInput, match="pixel_values"):
        keep_mask({"pixel_values": torch.zeros(1, 3, 4, 4)})


@pytest.mark.parametrize(("fixture", "path"), [("minilm", "encoder.layer.3"), ("tiny", "gpt_neox.layers.2")])
def test_patching_with_the_identity_changes_no_bit_and_with_zero_changes_the_output(request, fixture, path):
    loaded = request.getfixturevalue(fixture)
    inputs = inputs_of(loaded)
    with torch.no_grad():
        clean = loaded.model(**inputs)[0]
        with patched(loaded.model, path, lambda hidden: hidden.clone()):
            same = loaded.model(**inputs)[0]
        with patched(loaded.model, path, torch.zeros_like):
            other = loaded.model(**inputs)[0]
        after = loaded.model(**inputs)[0]
    assert torch.equal(clean, same) and torch.equal(clean, after)
    assert not torch.allclose(clean, other)


class Pair(NamedTuple):
    hidden: torch.Tensor
    rest: str


@pytest.mark.parametrize("kind", [tuple, list, Pair, dict])
def test_patching_keeps_the_structure(kind):
    class Inner(torch.nn.Module):
        def forward(self, x):
            return (
                {"hidden": x, "rest": "r"} if kind is dict else Pair(x, "r") if kind is Pair else kind((x, "r"))
            )

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x)

    with patched(model := Outer(), "inner", lambda hidden: hidden + 1):
        out = model(torch.zeros(1, 2, 3))
    assert type(out) is kind
    first, rest = out.values() if kind is dict else out
    assert rest == "r" and bool((first == 1).all())


def test_another_thread_sees_the_model_unpatched(tiny):
    inputs = inputs_of(tiny)
    with torch.no_grad():
        clean = tiny.model(**inputs)[0]
    with (
        patched(tiny.model, "gpt_neox.layers.2", torch.zeros_like),
        ThreadPoolExecutor(1) as other,
        torch.no_grad(),
    ):
        assert torch.equal(other.submit(lambda: tiny.model(**inputs)[0].detach()).result(), clean)
        assert not torch.equal(tiny.model(**inputs)[0], clean)


def test_patching_refuses_another_shape(tiny):
    before = n_hooks(tiny.model)
    with pytest.raises(InvalidInput, match="shape"), patched(tiny.model, "gpt_neox.layers.0", lambda h: h[:, :1]):
        tiny.model(**inputs_of(tiny))
    assert n_hooks(tiny.model) == before
