"""``evaluate`` on stand-ins: bits that do not depend on blocks, refusals, and a real model patched."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion import downstream
from apportion.activations.contexts import Contexts, batch_windows, windows_of
from apportion.activations.models import LoadedModel, load_model
from apportion.activations.source import Batch, Source, Split, Stream
from apportion.allocators import TokenChoiceConfig
from apportion.code import Code
from apportion.downstream import Downstream
from apportion.errors import InvalidInput, NonFiniteActivations
from apportion.evaluate import evaluate, reblock

from .conftest import make_sae

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODULE = "gpt_neox.layers.3"


class Dense:
    """A small SAE with the k largest affinities of every token."""

    def __init__(self, d_in: int = 8, d_sae: int = 24, k: int = 3, seed: int = 0) -> None:
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        self.W_enc = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(seed))

    def encode(self, x: Tensor) -> Code:
        top = (x.float() @ self.W_enc).relu().topk(self.k, -1)
        return Code.from_dense(torch.zeros(*x.shape[:-1], self.d_sae).scatter(-1, top.indices, top.values))

    def decode(self, code: Code) -> Tensor:
        return code.to_dense() @ self.W_enc.T / self.d_in


class Identity:
    """The positive and the negative part of every coordinate: its reconstruction is the input."""

    def __init__(self, d_in: int) -> None:
        self.d_in, self.d_sae = d_in, 2 * d_in

    def encode(self, x: Tensor) -> Code:
        return Code.from_dense(torch.cat([x.relu(), (-x).relu()], -1))

    def decode(self, code: Code) -> Tensor:
        positive, negative = code.to_dense().chunk(2, -1)
        return positive - negative


class Nothing(Identity):
    """No feature ever fires and the reconstruction is 0."""

    def encode(self, x: Tensor) -> Code:
        return Code.from_dense(torch.zeros(*x.shape[:-1], self.d_sae))


class Rows(Source):
    """Rows in memory, handed out in blocks of any size."""

    def __init__(self, x: Tensor, document: Tensor | None = None, block: int = 1024) -> None:
        self.x, self.document, self.block = x, document, block

    @property
    def d_in(self) -> int:
        return self.x.shape[1]

    def describe(self) -> dict[str, Any]:
        return {}

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        raise NotImplementedError

    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        end = len(self.x) if limit is None else min(limit, len(self.x))
        for start in range(0, end, self.block):
            at = slice(start, min(start + self.block, end))
            yield Batch(self.x[at], None if self.document is None else self.document[at])


class Texts(Rows):
    """Rows with the contexts of a language model."""

    module = MODULE

    def __init__(self, x: Tensor, batches: list[Contexts]) -> None:
        super().__init__(x)
        self.batches = batches

    def contexts(self, split: Split, batch_size: int, limit_rows: int | None = None) -> Iterator[Contexts]:
        self.asked = (split, limit_rows)
        yield from self.batches


def rows(n: int, d: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 5


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    assert result.pop("tokens_per_s") > 0
    return result


@settings(max_examples=15, deadline=None)
@given(block=st.sampled_from([1, 7, 1000, 1023, 1024, 1025, 5000]) | st.integers(1, 3000))
def test_equal_to_the_bit_for_any_incoming_block_size(block: int) -> None:
    x, document = rows(2500), torch.arange(2500) // 90
    expected = without_time(evaluate(Dense(), Rows(x, document)))
    assert without_time(evaluate(Dense(), Rows(x, document, block))) == expected


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=8), size=st.integers(1, 20))
def test_reblock_keeps_rows_and_order(sizes: list[int], size: int) -> None:
    x, document = rows(sum(sizes)), torch.arange(sum(sizes))
    out = list(reblock(map(Batch, x.split(sizes), document.split(sizes)), size))
    assert all(len(batch.x) == size for batch in out[:-1])
    assert not out or 0 < len(out[-1].x) <= size
    joined = [torch.cat([getattr(b, name) for b in out] or [x[:0]]) for name in ("x", "document")]
    assert torch.equal(joined[0], x)
    assert torch.equal(joined[1], document) or not out
    assert all(batch.target is None for batch in out)


def test_against_naive_and_as_json() -> None:
    x, document, sae = rows(1500), torch.arange(1500) // 77, Dense()
    result = without_time(evaluate(sae, Rows(x, document)))
    code = sae.encode(x)
    error = (x.double() - sae.decode(code).double()).square().sum()
    assert result["fvu"] == pytest.approx(
        float(error / (x.double() - x.double().mean(0)).square().sum()), rel=1e-6
    )
    assert result["l0"] == pytest.approx(code.nnz / 1500)
    assert (result["tokens"], result["documents"]) == (1500, 20)
    assert sum(result["l0_histogram"]) == 1500
    assert result["density_zero"] + sum(result["density_histogram"]) == 24
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_oracle_is_asked_for_and_changes_nothing_else() -> None:
    sae, x = make_sae(TokenChoiceConfig.for_k(5), d_in=8), rows(1500)
    plain, both = evaluate(sae, Rows(x)), evaluate(sae, Rows(x, block=100), oracle=30)
    assert both["allocation_efficiency"] == pytest.approx(0, abs=1e-4)
    assert both["fvu_in_order"] == pytest.approx(plain["fvu"]) == both["fvu"]
    assert (both["k_max"], both["oracle_tokens"]) == (30, 1500)
    assert plain.keys() < both.keys()
    assert all(both[key] == plain[key] for key in plain if key != "tokens_per_s")
    assert json.loads(json.dumps(both, allow_nan=False)) == both


def test_the_oracle_needs_an_order_of_at_least_one_feature() -> None:
    with pytest.raises(InvalidInput, match="a Dense does not say in which order"):
        evaluate(Dense(), Rows(rows(100)), oracle=30)
    with pytest.raises(InvalidInput, match="order of 0 features"):
        evaluate(make_sae(TokenChoiceConfig.for_k(5), d_in=8), Rows(rows(100)), oracle=0)


def test_silent_features_are_counted_apart_from_those_that_never_fire() -> None:
    sae, x = make_sae(TokenChoiceConfig.for_k(1), d_in=8), rows(1500)
    with torch.no_grad():
        sae.encoder.bias[:12] = -1e6
        sae.encoder.bias[12:24] -= 3.0
    result = evaluate(sae, Rows(x))
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert result["silent"] == pytest.approx(float((pre.amax(0) <= 0).float().mean()))
    assert 1 / 8 <= result["silent"] < result["never_fires"] < 1
    assert "silent" not in evaluate(Dense(), Rows(x)), "which has no affinities to look at"


def test_limit_measures_the_first_rows() -> None:
    x = rows(2500)
    assert without_time(evaluate(Dense(), Rows(x), limit=1100)) == without_time(evaluate(Dense(), Rows(x[:1100])))


def test_nothing_fires_and_one_document() -> None:
    result = evaluate(Nothing(8), Rows(rows(50), torch.zeros(50, dtype=torch.int64)))
    assert (result["l0"], result["cosine"], result["never_fires"]) == (0, 0, 1)
    assert result["l0_se"] is None
    assert result["documents"] == 1
    assert evaluate(Identity(8), Rows(rows(50)))["fvu"] == 0


def test_a_block_never_views_the_sources_memory() -> None:
    x = rows(64)
    out = list(reblock([Batch(x)], 32))
    assert {b.x.untyped_storage().data_ptr() for b in out}.isdisjoint({x.untyped_storage().data_ptr()})


def test_gradient_mode_and_inputs_are_left_alone() -> None:
    class NoGradient(Dense):
        def encode(self, x: Tensor) -> Code:
            assert not torch.is_grad_enabled()
            return super().encode(x)

    x = rows(30)
    before = x.clone()
    evaluate(NoGradient(), Rows(x))
    assert torch.equal(x, before)
    assert torch.is_grad_enabled()


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match=r"width 5 .* width 8"):
        evaluate(Dense(), Rows(rows(9, 5)))
    with pytest.raises(InvalidInput, match="'calibrate' of the source gave no rows"):
        evaluate(Dense(), Rows(rows(0)), split="calibrate")
    with pytest.raises(InvalidInput, match="all equal"):
        evaluate(Dense(), Rows(torch.ones(9, 8)))
    with pytest.raises(NonFiniteActivations):
        evaluate(Identity(2), Rows(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])))
    with pytest.raises(InvalidInput, match="Rows has no contexts"):
        evaluate(Dense(), Rows(rows(9)), model=LoadedModel(torch.nn.Identity().eval(), None, "none", True))
    with pytest.raises(InvalidInput, match="1 of 2 batches have no 'document'"):
        list(reblock([Batch(rows(3)), Batch(rows(3), torch.arange(3))]))


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    pytest.importorskip("transformers")
    if not (SHARED / "models/tiny-lm").is_dir():
        pytest.skip(f"no model at {SHARED / 'models/tiny-lm'}")
    return load_model(str(SHARED / "models/tiny-lm"))


@pytest.fixture(scope="module")
def texts(tiny: LoadedModel) -> Texts:
    data = SHARED / "data/text_eval.jsonl.gz"
    if not data.is_file():
        pytest.skip(f"no texts at {data}")
    with gzip.open(data, "rt") as lines:
        documents = [json.loads(next(lines))["text"][:length] for length in (300, 90, 400, 37, 200)]
    windows = [w for d in windows_of(documents, 0, tiny.tokenizer, 64) for w in d]
    return Texts(rows(40, 256), list(batch_windows(windows, 4)))


def states(tiny: LoadedModel, contexts: Contexts) -> Tensor:
    """The module's own output, by a hook of this test's."""
    seen: list[Tensor] = []
    layer = tiny.model.get_submodule(MODULE)
    handle = layer.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        tiny.model(**contexts.inputs())
    handle.remove()
    return seen[0]


def test_identity_is_exactly_one_and_zero_exactly_nought(tiny: LoadedModel, texts: Texts) -> None:
    identity = evaluate(Identity(256), texts, model=tiny)
    assert identity["ce_score"] == 1.0
    assert identity["ce_patched"] == identity["ce_clean"]
    assert identity["kl"] == 0.0
    nothing = evaluate(Nothing(256), texts, model=tiny)
    assert nothing["ce_score"] == 0.0
    assert nothing["ce_patched"] == nothing["ce_zero"]
    assert nothing["ce_clean"] == identity["ce_clean"] < nothing["ce_zero"]
    assert not any(module._forward_hooks for module in tiny.model.modules())


def test_logits_are_held_within_a_bound(tiny: LoadedModel, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of a batch the last bits are others, since a product depends on its number of rows."""
    sae = Dense(256, 512, 9)
    whole = Downstream(texts, tiny).of(sae)
    sizes: list[int] = []
    handle = tiny.model.register_forward_hook(lambda m, args, out: sizes.append(out.logits.nbytes))
    try:
        Downstream(texts, tiny).of(sae)
        assert max(sizes) * 3 < downstream.LOGIT_BYTES
        bound = 3 * max(sizes) // 2
        sizes.clear()
        monkeypatch.setattr(downstream, "LOGIT_BYTES", bound)
        parts = Downstream(texts, tiny)
        cut = parts.of(sae)
        assert 0 < 3 * max(sizes) <= bound
        assert parts.of(Identity(256))["ce_score"] == 1.0
        monkeypatch.setattr(downstream, "LOGIT_BYTES", 1)
        sizes.clear()
        one = Downstream(texts, tiny).of(sae)
        assert len(sizes) == 3 * sum(len(batch.input_ids) for batch in texts.batches)
    finally:
        handle.remove()
    for name, value in whole.items():
        assert cut[name] == pytest.approx(value, rel=1e-5) and one[name] == pytest.approx(value, rel=1e-5), name


def test_cross_entropy_recomputed(tiny: LoadedModel, texts: Texts) -> None:
    """By a hook and a loss of its own, one context at a time and without padding."""
    sae = Dense(256, 512, 9)
    result = evaluate(sae, texts, model=tiny)
    losses: dict[str, list[Tensor]] = {"clean": [], "patched": [], "zero": []}
    how = {"clean": lambda h: h, "patched": lambda h: sae.decode(sae.encode(h)), "zero": torch.zeros_like}
    for batch in texts.batches:
        for ids, mask, keep in zip(batch.input_ids, batch.attention_mask, batch.keep, strict=True):
            n = int(mask.sum())
            for name, fn in how.items():
                logits = patched_logits(tiny, ids[None, :n], keep[None, :n], fn)
                loss = F.cross_entropy(logits[0, :-1].double(), ids[1:n], reduction="none")
                losses[name].append(loss[keep[: n - 1]])
    assert result["downstream_tokens"] == sum(map(len, losses["clean"]))
    for name, parts in losses.items():
        assert result[f"ce_{name}"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-5)
    assert result["kl"] > 0
    assert result["ce_score"] < 1


def patched_logits(tiny: LoadedModel, ids: Tensor, keep: Tensor, fn: Any) -> Tensor:
    def hook(module: Any, args: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        new = torch.where(keep[..., None], fn(hidden), hidden)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = tiny.model.get_submodule(MODULE).register_forward_hook(hook)
    with torch.no_grad():
        logits: Tensor = tiny.model(input_ids=ids).logits
    handle.remove()
    return logits


def test_padding_does_not_matter(tiny: LoadedModel, texts: Texts) -> None:
    def padded(contexts: Contexts) -> Contexts:
        wide = [F.pad(t, (0, 9)) for t in (contexts.input_ids, contexts.attention_mask, contexts.keep)]
        return Contexts(*wide, contexts.document, contexts.start)

    sae = Dense(256, 512, 9)
    more = Texts(texts.x, [padded(batch) for batch in texts.batches])
    plain, wide = (evaluate(sae, source, model=tiny) for source in (texts, more))
    for key in ("ce_clean", "ce_patched", "ce_zero", "kl", "ce_score"):
        assert wide[key] == pytest.approx(plain[key], rel=1e-4)
    assert wide["downstream_tokens"] == plain["downstream_tokens"]


def test_positions_that_were_not_captured_keep_their_state(tiny: LoadedModel, texts: Texts) -> None:
    """With every second position captured, the others pass on what they had."""
    batch = texts.batches[0]
    keep = batch.keep & (torch.arange(batch.keep.shape[1]) % 2 == 0)
    half = Contexts(batch.input_ids, batch.attention_mask, keep, batch.document, batch.start)
    inner = LoadedModel(tiny.model.gpt_neox, None, "inner", causal=False)
    source = Texts(texts.x, [half])
    source.module = "layers.5"  # only the final norm comes after it
    result = evaluate(Nothing(256), source, model=inner)
    assert result["downstream_tokens"] == int(keep.sum())
    assert result["hidden_error"] == result["hidden_error_zero"] > 0
    assert evaluate(Identity(256), source, model=inner)["hidden_error"] == 0.0
    seen: list[Tensor] = []
    handle = tiny.model.gpt_neox.final_layer_norm.register_forward_hook(lambda m, a, out: seen.append(a[0]))
    evaluate(Nothing(256), source, model=inner)
    handle.remove()
    clean, restored, zeroed = seen
    assert torch.equal(restored[~keep], clean[~keep])
    assert torch.equal(zeroed[~keep], clean[~keep])
    assert not zeroed[keep].any()


def test_the_patched_state_is_the_reconstruction_of_the_captured_one(tiny: LoadedModel, texts: Texts) -> None:
    seen: list[Tensor] = []

    class Spy(Identity):
        def encode(self, x: Tensor) -> Code:
            seen.append(x)
            return super().encode(x)

    evaluate(Spy(256), Texts(texts.x, texts.batches[:1]), model=tiny)
    captured = states(tiny, texts.batches[0])[texts.batches[0].keep]
    assert torch.equal(seen[-1], captured)


@pytest.mark.parametrize(
    ("limit", "downstream_limit", "asked"), [(None, None, None), (30, None, 30), (30, 20, 20), (None, 20, 20)]
)
def test_the_smaller_limit_bounds_the_contexts(
    tiny: LoadedModel, texts: Texts, limit: int | None, downstream_limit: int | None, asked: int | None
) -> None:
    few = Texts(texts.x, texts.batches[:1])
    evaluate(Identity(256), few, limit=limit, downstream_limit=downstream_limit, split="calibrate", model=tiny)
    assert few.asked == ("calibrate", asked)


def test_a_model_of_another_width_is_refused(tiny: LoadedModel, texts: Texts) -> None:
    with pytest.raises(InvalidInput, match="width 256 and the SAE reads width 8"):
        evaluate(Dense(), Texts(rows(40), texts.batches), model=tiny)
