"""A run says how its affinities are computed; its steps have the same losses and gradients."""

from __future__ import annotations

import pytest
import torch

from apportion.affinities import ChunkedAffinities, EncoderConfig, ScreenedAffinities
from apportion.allocators import AllocatorConfig
from apportion.clock import Clock
from apportion.errors import InvalidConfig
from apportion.recipes.base import with_price
from apportion.schedules import Constant
from apportion.training import Run, RunConfig, train_step
from apportion.training.step import StepResult

from ..conftest import inputs, make_sae

WAYS = [EncoderConfig(way="chunked", chunk=13), EncoderConfig(way="chunked"), EncoderConfig(way="screened")]
KINDS = {"chunked": ChunkedAffinities, "screened": ScreenedAffinities}


def stepped(kind: str, encoder: EncoderConfig) -> tuple[Run, StepResult]:
    """A step with auxiliary losses, for half of the features are dead."""
    config = make_sae(AllocatorConfig.members[kind].for_k(8)).config
    priced = with_price(RunConfig(sae=config, lr=Constant(value=1e-3), encoder=encoder))
    run = Run(priced, torch.zeros(24))
    run.firing.age[::2] = 1 << 40
    x = inputs(64)
    return run, train_step(run, x, Clock(3, 9), target=x[:, 0])


@pytest.mark.parametrize("encoder", WAYS, ids=str)
@pytest.mark.parametrize("kind", ["token_choice", "mutual_choice", "soft_top_k", "relu"])
def test_a_step_has_the_same_losses_and_gradients(kind, encoder):
    (run, ours), (plain, theirs) = stepped(kind, encoder), stepped(kind, EncoderConfig())
    assert isinstance(ours.trace.pre, KINDS[encoder.way])
    torch.testing.assert_close(ours.losses, theirs.losses)
    for mine, other in zip(run.sae.parameters(), plain.sae.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_settings_that_do_not_go_together_are_refused():
    sae = make_sae(AllocatorConfig.members["token_choice"].for_k(8)).config
    with pytest.raises(InvalidConfig, match="chunk = 5 goes with way = 'chunked'"):
        EncoderConfig.parse({"way": "screened", "chunk": 5}, "encoder")
    with pytest.raises(InvalidConfig, match="goes with the whole product"):
        RunConfig.parse({"sae": sae.model_dump(), "precision": "bf16", "encoder": {"way": "screened"}}, "run")
