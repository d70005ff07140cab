"""Every architecture that users have: all sites in one pass, equal to what the model itself returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.activations import LoadedModel
from apportion.activations.capture import capture, patched
from apportion.errors import InvalidInput, UnknownName
from apportion.metrics import CausalDownstream

from .architectures import ARCHITECTURES, WORDS, Architecture

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
BATCHES = [(3, 6, "right"), (3, 6, "left"), (1, 6, None), (2, 1, None)]


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda one: one.name)
def kind(request) -> Architecture:
    return request.param


@pytest.fixture(scope="module")
def model(kind: Architecture) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind.make(transformers)
        with torch.no_grad():  # several kinds begin with biases or gates at zero, which would hide what is lost
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval().requires_grad_(False)


def watched(model: nn.Module, kind: Architecture, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The model's own output, and its states by hooks of the test's own."""
    seen: dict[str, Tensor] = {}

    def keep(site: str, value: Any) -> None:
        seen.setdefault(site, (value if isinstance(value, Tensor) else value[0]).clone())

    handles = []
    for site in kind.sites:
        path, _, of_input = site.partition(":")
        layer = model.get_submodule(path)
        if of_input:
            handles.append(layer.register_forward_pre_hook(lambda m, args, s=site: keep(s, args[0])))
        else:
            handles.append(layer.register_forward_hook(lambda m, args, out, s=site: keep(s, out)))
    with torch.no_grad():
        result = model(**inputs, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return result, seen


@pytest.mark.parametrize(("batch", "length", "pad"), BATCHES)
def test_all_sites_in_one_pass_are_what_the_model_itself_has(kind, model, batch, length, pad):
    inputs = kind.inputs(batch, length, pad)
    result, seen = watched(model, kind, inputs)
    found = capture(model, kind.sites, inputs)
    assert set(found) == set(kind.sites)
    torch.testing.assert_close(found[kind.block], kind.own(result), rtol=0, atol=0)
    positions = found[kind.block].shape[:2]
    for site in kind.sites:
        expected = seen[site].reshape(*positions, -1)
        if site.endswith("head=1"):
            expected = expected.unflatten(-1, (4, -1))[:, :, 1]
        assert torch.equal(found[site], expected), site


def test_patching_a_site_changes_that_and_identity_nothing(kind, model):
    inputs = kind.inputs(3, 6, "right")
    with torch.no_grad():
        clean = everything(model(**inputs))
        hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
        for site in kind.sites:
            with patched(model, site, lambda state: state):
                assert torch.equal(everything(model(**inputs)), clean), site
            expected = capture(model, [site], inputs)[site].flip(-1) * 2
            with patched(model, site, lambda state: state.flip(-1) * 2):
                # Its hook comes after, so that it reads what the rest of the model does.
                assert torch.equal(capture(model, [site], inputs)[site], expected), site
                assert not torch.equal(everything(model(**inputs)), clean), site
    assert hooks == [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]


def everything(output: Any) -> Tensor:
    """All that the model returns in floating point, side by side."""
    values = [value for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.cat([value.reshape(-1) for value in values])


@pytest.mark.parametrize(
    "kind", [one for one in ARCHITECTURES if one.causal], indirect=True, ids=lambda one: one.name
)
def test_cross_entropy_and_divergence_are_exact_under_identity(kind, model):
    loaded = LoadedModel(model, None, kind.name, causal=True)
    inputs = kind.inputs(3, 6, "right")
    keep = inputs["attention_mask"].bool()
    with torch.no_grad():
        clean = loaded.output(inputs)
        assert clean.shape == (3, 6, WORDS) and loaded.output_bytes(5) == 5 * WORDS * 4
        for site in kind.sites:
            metric = CausalDownstream()
            with patched(model, site, lambda state: state):
                same = loaded.output(inputs)
            with patched(model, site, torch.zeros_like):
                zero = loaded.output(inputs)
            metric.update(clean_logits=clean, patched_logits=same, zero_logits=zero, keep=keep, **inputs)
            result = metric.result()
            assert result["ce_score"] == 1.0 and result["kl"] == 0.0, site


def test_unknown_sites_name_the_nearest(model, kind):
    block = kind.block
    for name in (f"{block}:inptu", f"{block}:input.head=x", f"{block}:head=1"):
        with pytest.raises(UnknownName, match=f"no site '{name}'; nearest: .*'{block}:input'"):
            capture(model, [name], {})
    with pytest.raises(UnknownName, match=f"nearest: .*'{block}:input'"):
        capture(model, [f"{block}x:input"], {})
    if kind.mixer:
        mixer = f"{block}.{kind.mixer}"
        with pytest.raises(UnknownName, match=f"has 4 heads and no head 4; nearest: '{mixer}:input.head=3'"):
            capture(model, [f"{mixer}:input.head=4"], {})
    else:
        with pytest.raises(InvalidInput, match="names no number of attention heads"):
            capture(model, [f"{block}:input.head=0"], {})
