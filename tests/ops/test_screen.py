"""A bfloat16 product is nowhere farther off than its band says, and chooses what float32 chooses."""

from __future__ import annotations

import pytest
import torch

from apportion.affinities import DenseAffinities, ScreenedAffinities
from apportion.ops.screen import UNIT, screen_band
from apportion.trace import Dictionary


def rows_and_weights(seed: int, d_in: int = 64, d_sae: int = 2048) -> tuple[torch.Tensor, ...]:
    """Rows and features of very different lengths, and biases as large as the products."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(50, d_in, generator=g) * torch.logspace(-2, 2, 50)[:, None]
    weight = torch.randn(d_sae, d_in, generator=g) * (0.2 + torch.rand(d_sae, 1, generator=g))
    return x, weight, torch.randn(d_sae, generator=g)


@pytest.mark.parametrize("seed", range(3))
def test_no_entry_is_farther_off_than_the_band(seed):
    x, weight, b_enc = rows_and_weights(seed)
    rough, rough_weight = x.bfloat16(), weight.bfloat16()
    product = torch.addmm(b_enc.bfloat16(), rough, rough_weight.T).double()
    exact = x.double() @ weight.double().T + b_enc.double()
    bound = screen_band(x, weight, b_enc, rough, rough_weight)[:, None] + UNIT * product.abs()
    assert bool(((product - exact).abs() <= bound).all())
    # Nor is the band so wide that it says nothing.
    assert float(bound[-1].median()) < 2.0**-6 * float(x[-1].norm() * weight.norm(dim=1).max())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_is_chosen_is_what_float32_chooses(scale):
    x, weight, b_enc = rows_and_weights(7)
    x, b_enc = scale * x, scale * b_enc
    d = Dictionary(weight, b_enc, torch.zeros_like(weight), torch.zeros(x.shape[1]))
    pre = torch.addmm(b_enc, x, weight.T)
    ours, theirs = ScreenedAffinities(x, x, d), DenseAffinities(x, x, pre, d)
    for k in (torch.full((50,), 8), torch.arange(50), torch.full((50,), 2048)):
        assert torch.equal(torch.stack(ours.top_rows(k)), torch.stack(theirs.top_rows(k)))
        assert (ours.undecided == 1.0) == (int(k.min()) == 2048)
    for m in (1, 400, 2000, 50 * 2048):
        assert torch.equal(torch.stack(ours.top_batch(m)), torch.stack(theirs.top_batch(m)))


def test_rows_that_nothing_is_known_of_are_computed_whole():
    x, weight, b_enc = rows_and_weights(3)
    x[10:20] = 0
    d = Dictionary(weight, torch.zeros_like(b_enc), torch.zeros_like(weight), torch.zeros(x.shape[1]))
    ours = ScreenedAffinities(x, x, d)
    pairs = ours.top_rows(torch.full((50,), 8))
    assert ours.undecided == pytest.approx(0.2)
    assert torch.bincount(pairs.rows, minlength=50).tolist() == [8] * 10 + [0] * 10 + [8] * 30
