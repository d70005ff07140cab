"""From the same weights and batches, losses, gradients and weights are those of sae-lens."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens", reason="needs the extra `peers` (make peers)")

from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig  # noqa: E402
from sae_lens.saes.sae import TrainStepInput  # noqa: E402
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402

from apportion.allocators import AllocatorConfig  # noqa: E402
from apportion.clock import Clock  # noqa: E402
from apportion.sae import SAEConfig  # noqa: E402
from apportion.schedules import WarmupDecay  # noqa: E402
from apportion.training import Run, RunConfig, train_step  # noqa: E402
from apportion.training.decoder_norm import project_gradient, renormalise  # noqa: E402
from apportion.training.step import losses_of  # noqa: E402

D_IN, D_SAE, K, N, STEPS = 64, 512, 16, 256, 10
LR = WarmupDecay(peak=1e-3, warmup=0.3, decay=0.4)
PEERS = {
    "token_choice": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "mutual_choice": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def ours(kind: str) -> Run:
    config = AllocatorConfig.members[kind].for_k(K)
    run = Run(
        RunConfig(sae=SAEConfig(d_in=D_IN, d_sae=D_SAE, allocator=config), lr=LR, dead_after=10_000),
        torch.zeros(D_IN),
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        run.sae.encoder.weight.add_(0.05 * torch.randn(D_SAE, D_IN, generator=g))
        run.sae.encoder.bias.normal_(std=0.1, generator=g)
        run.sae.b_dec.normal_(generator=g)
    return run


def theirs(kind: str, run: Run):
    sae_class, config_class = PEERS[kind]
    peer = sae_class(
        config_class(
            d_in=D_IN,
            d_sae=D_SAE,
            k=K,
            apply_b_dec_to_input=True,
            rescale_acts_by_decoder_norm=False,
            normalize_activations="none",
            dtype="float32",
            device="cpu",
        )
    )
    with torch.no_grad():
        for mine, name in ((run.sae.W_enc, "W_enc"), (run.sae.b_enc, "b_enc"), (run.sae.W_dec, "W_dec")):
            getattr(peer, name).copy_(mine)
        peer.b_dec.copy_(run.sae.b_dec)
    return peer


@pytest.mark.parametrize("kind", PEERS)
def test_first_step_agrees_with_sae_lens(kind):
    run = ours(kind)
    peer = theirs(kind, run)
    x = 3 * torch.randn(N, D_IN, generator=torch.Generator().manual_seed(2))
    output = peer.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
    )
    output.loss.backward()
    trace = run.sae.trace(x, Clock(0, 10), accumulate=True)
    losses = losses_of(run, trace)
    assert set(losses) == {"reconstruction"}
    losses["reconstruction"].backward()
    torch.testing.assert_close(losses["reconstruction"], output.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(trace.code.to_dense(), _dense(output.feature_acts), rtol=1e-5, atol=1e-5)
    pairs = {
        "W_enc": (run.sae.encoder.weight.grad.T, peer.W_enc.grad),
        "b_enc": (run.sae.encoder.bias.grad, peer.b_enc.grad),
        "W_dec": (run.sae.W_dec.grad, peer.W_dec.grad),
        "b_dec": (run.sae.b_dec.grad, peer.b_dec.grad),
    }
    for name, (got, want) in pairs.items():
        assert (got - want).norm() <= 1e-5 * want.norm(), name


def _dense(acts: torch.Tensor) -> torch.Tensor:
    return acts.to_dense() if acts.is_sparse else acts


@pytest.mark.parametrize("kind", PEERS)
def test_ten_steps_agree_with_sae_lens(kind):
    """Schedule, clipping, Adam and the rule itself, over time; their decoder is held to unit norm as ours is."""
    run = ours(kind)
    peer = theirs(kind, run)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=STEPS * N,
            train_batch_size_samples=N,
            lr=LR.peak,
            lr_end=LR.peak,
            lr_warm_up_steps=round(LR.warmup * STEPS),
            lr_decay_steps=round(LR.decay * STEPS),
        ),
        peer,
        iter(()),
    )
    peer.W_dec.register_post_accumulate_grad_hook(project_gradient)
    trainer.optimizer.register_step_post_hook(lambda *_: renormalise(peer.W_dec))
    g = torch.Generator().manual_seed(2)
    before = {name: part.clone() for name, part in parts_of(run).items()}
    for number in range(STEPS):
        x = 3 * torch.randn(N, D_IN, generator=g)
        lr = trainer.optimizer.param_groups[0]["lr"]
        wanted = trainer.step(x)
        trainer.n_training_steps += 1
        result = train_step(run, x, Clock(number, STEPS))
        assert result.lr == pytest.approx(lr, rel=1e-12)
        torch.testing.assert_close(result.losses["reconstruction"], wanted.loss.detach(), rtol=1e-5, atol=0)
    for name, part in parts_of(run).items():
        apart, moved = (part - getattr(peer, name)).norm(), (part - before[name]).norm()
        assert apart <= 1e-4 * moved, f"{name}: {apart:.2e} of {moved:.2e}"


def parts_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: getattr(run.sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
