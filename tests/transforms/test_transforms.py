"""Laws of every transform, and what each of them is by the formula of its source."""

from __future__ import annotations

import math

import pytest
import torch

import apportion as ap
from apportion.activations import TensorSource
from apportion.allocators import AllocatorConfig, MutualChoiceConfig, TokenChoiceConfig
from apportion.cli import main
from apportion.clock import END
from apportion.errors import InvalidInput
from apportion.sae import SAE, SAEConfig
from apportion.transforms import LayerNormConfig, MeanConfig, TransformConfig, UnitConfig

from ..conftest import inputs

KINDS = sorted(TransformConfig.members)
RULES = [TokenChoiceConfig.for_k(6), MutualChoiceConfig.for_k(6)]
D_IN, D_SAE = 24, 96


def config_of(kind: str) -> TransformConfig:
    return TransformConfig.lookup(kind)()


def tokens(n: int, seed: int = 1) -> torch.Tensor:
    """[n, 24] rows of unlike lengths around a common mean."""
    return inputs(n, seed=seed) * 3 + 5


def make(kind: str, rule: AllocatorConfig = RULES[0]) -> SAE:
    """A frozen SAE under the transform, which has seen a first batch."""
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=D_SAE, allocator=rule, transform=config_of(kind)))
    sae.transform.initialise(tokens(256))
    generator = torch.Generator().manual_seed(0)
    sae.initialise(0.1 * torch.randn(D_IN, generator=generator), generator)
    frozen, _ = sae.freeze().calibrate(lambda: iter([tokens(256, seed) for seed in (2, 3)]), 6)
    return frozen.requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
class TestEveryKind:
    def test_what_is_undone_is_what_was_there(self, kind, rule):
        x = tokens(50).double()
        transform = make(kind, rule).double().transform
        before = x.clone()
        changed, undo = transform(x)
        assert torch.equal(x, before)
        torch.testing.assert_close(transform.restore(changed, undo), x, rtol=1e-4, atol=1e-4)
        assert (undo is not None) == transform.per_token

    def test_a_token_has_the_same_code_in_any_batch(self, kind, rule):
        sae, x = make(kind, rule), tokens(65, 7)
        together = sae.encode(x).to_dense()
        for rows in (slice(0, 1), slice(13, 40), slice(64, 65)):
            alone = sae.encode(x[rows]).to_dense()
            assert torch.equal(alone > 0, together[rows] > 0)
            torch.testing.assert_close(alone, together[rows], rtol=1e-5, atol=1e-5)

    def test_decoding_is_undone_by_tokens_and_reading_says_the_same(self, kind, rule):
        sae, x = make(kind, rule), tokens(12).reshape(3, 4, D_IN)
        code = sae.encode(x)
        x_hat = sae.decode(code)
        assert x_hat.shape == x.shape == sae(x).shape
        trace = sae.read(x.reshape(-1, D_IN))
        torch.testing.assert_close(sae.restored(trace), x_hat.reshape(-1, D_IN))
        assert torch.equal(sae.decode(code, like=x), x_hat)
        by_hand = ap.Code.from_dense(code.to_dense())
        assert torch.equal(sae.decode(by_hand, like=x), x_hat)
        if sae.transform.per_token:
            with pytest.raises(InvalidInput, match="give the tokens as like=x"):
                sae.decode(by_hand)

    def test_folding_the_scale_changes_nothing(self, kind, rule):
        sae, x = make(kind, rule), tokens(40, 5)
        folded, scale = sae.fold(0.25), 0.25
        code, raw = sae.encode(x), folded.encode(x / scale)
        assert torch.equal(code.counts(), raw.counts())
        assert torch.equal(code.indices, raw.indices)
        torch.testing.assert_close(folded.decode(raw) * scale, sae.decode(code), rtol=1e-4, atol=1e-4)
        assert folded.config.transform.kind == ("none" if kind == "mean" else kind)

    def test_a_prefix_sees_what_the_whole_saw(self, kind, rule):
        sae, x = make(kind, rule), tokens(40, 5)
        prefix = sae.prefix(48)
        assert prefix.config.transform == sae.config.transform
        assert torch.equal(prefix.transform(x)[0], sae.transform(x)[0])
        assert torch.allclose(prefix.read(x).pre.dense(), sae.read(x).pre.dense()[:, :48], atol=1e-5)

    def test_saving_is_exact(self, kind, rule, tmp_path):
        sae, x = make(kind, rule), tokens(40, 5)
        ap.save(sae, tmp_path)
        again = ap.load(tmp_path)
        assert again.config == sae.config
        assert torch.equal(again(x), sae(x))

    def test_an_edit_that_changes_nothing_gives_x_back(self, kind, rule):
        sae, x = make(kind, rule), tokens(9)
        silent = int((sae.encode(x).firings() == 0).nonzero()[0])
        assert torch.equal(sae.intervene(x, silent, 0.0).x_hat, x)
        changed = sae.intervene(x, 3, 2.0)
        torch.testing.assert_close(changed.x_hat - x, sae.decode(changed.code) - sae(x), rtol=1e-4, atol=1e-4)

    def test_the_oracle_counts_errors_where_figures_do(self, kind, rule):
        sae = make(kind, rule)
        found = ap.evaluate(sae, TensorSource(tokens(640), heldout=0.9), oracle=32)
        assert found["fvu_in_order"] == pytest.approx(found["fvu"], rel=1e-4)
        assert found["fvu_oracle"] <= found["fvu"] * (1 + 1e-6)
        assert found["importance_tokens"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_saves_and_resumes_under_every_kind(kind, tmp_path):
    truth = ap.SyntheticSource(ap.SyntheticConfig(d_in=D_IN, n_features=64, n_tokens=20_000, k=4.0), heldout=0.3)
    x = torch.cat([batch.x for batch in truth.blocks("evaluate")])
    # Tokens of lengths that a dictionary cannot know, and a mean that it would have to learn.
    lengths = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0)) + 0.5
    source = TensorSource((x + 3 * x.mean(0)) * lengths, heldout=0.4)
    run = ap.recipe("topk").make(D_IN, D_SAE, 6, 0)
    config = run.model_copy(update={"sae": run.sae.model_copy(update={"transform": config_of(kind)})})
    settings = ap.TrainConfig(n_tokens=60_000, batch_size=512)
    sae = ap.train({"run": config}, source, tmp_path, settings)["run"]
    assert sae.config.transform.kind == ("none" if kind == "mean" else kind)
    found = ap.evaluate(ap.load(tmp_path / "run"), source)
    assert found["l0"] <= 6 and found["fvu"] < 0.5


def test_layer_norm_is_that_of_saelens():
    x = tokens(7).double()
    changed, undo = LayerNormConfig().build(D_IN)(x)
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    torch.testing.assert_close(changed, (x - mean) / (deviation + 1e-5))
    torch.testing.assert_close(undo(changed * 0 + 1), deviation + mean.expand_as(x))


def test_unit_is_the_constant_norm_of_saelens_and_keeps_zero():
    x = torch.cat([tokens(7), torch.zeros(1, D_IN)]).double()
    changed, undo = UnitConfig().build(D_IN)(x)
    torch.testing.assert_close(changed[:7], x[:7] * math.sqrt(D_IN) / x[:7].norm(dim=1, keepdim=True))
    assert not changed[7].any() and not undo(changed)[7].any()


def test_the_mean_is_taken_off_and_folds_into_the_decoder():
    sae, x = make("mean"), tokens(20, 4)
    torch.testing.assert_close(sae.transform.mean, tokens(256).mean(0))
    folded = sae.fold(1.0)
    torch.testing.assert_close(folded.b_dec, sae.b_dec + sae.transform.mean)
    torch.testing.assert_close(folded(x), sae(x), rtol=1e-4, atol=1e-4)
    assert MeanConfig().build(3).mean.tolist() == [0, 0, 0]


def test_gradients_flow_in_the_dictionarys_own_space():
    sae = make("layer_norm").double().requires_grad_(True)
    x = tokens(8).double()
    trace = sae.trace(x, END)
    expected, _ = sae.transform(x)
    assert torch.equal(trace.x, expected)
    (trace.x_hat - trace.x).square().sum().backward()
    residual = 2 * (sae.dictionary().decode(trace.code) - expected).detach()
    torch.testing.assert_close(sae.W_dec.grad, trace.code.to_dense().detach().T @ residual)


def test_the_command_takes_a_transform(tmp_path, capsys):
    x = torch.nn.functional.normalize(torch.randn(40, 6)) @ torch.randn(6, D_IN)
    source = TensorSource(x.repeat(40, 1))
    assert source.n_train > 0
    assert main(["train", str(tmp_path / "none"), "--out", str(tmp_path), "--transform", "norm"]) == 2
    assert "unknown TransformConfig kind 'norm'" in capsys.readouterr().err
