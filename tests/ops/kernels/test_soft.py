"""The soft top-k by kernels, against sorting in float64, in output and every gradient, over many small blocks."""

from __future__ import annotations

import pytest
import torch

from apportion.ops.soft_top_k import soft_pairs, soft_top_k, soft_top_k_reference, weights_at

from ..test_soft_top_k import ALPHAS, FEW_AND_MANY, batch, check_gradients, check_pairs, check_weights

pytest.importorskip("triton", reason="Triton is not installed")
from apportion.ops.kernels import soft

# Numbers that overflow are meant to: infinitely many alphas away, an entry adds nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(soft, "_COLUMNS", 256)
    monkeypatch.setattr(soft, "_ENTRIES", (16, 128))
    monkeypatch.setattr(soft, "_GROUPS", (128, 128))
    monkeypatch.setattr(soft, "_HALVINGS", 12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_and_gradients_equal_sorting(alpha, dtype, device):
    case = ALPHAS.index(alpha) + len(ALPHAS) * DTYPES.index(dtype)
    scale = (1.0, 1e4)[case % 2]
    a, k = (t[case::37].to(device) for t in batch(scale, dtype))  # three rows of other kinds in every case
    check_weights(a, k, alpha)
    check_gradients(a, k, alpha, share_of_k=1e-5 if scale > 1 or dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("ks", FEW_AND_MANY)
@pytest.mark.parametrize("alpha", [1e-6, 0.1])
def test_pairs_equal_the_dense_operator(alpha, ks, device):
    check_pairs(alpha, 0.1, ks, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [1e-300, 1e-30, 1e30, 1e300])
def test_an_extreme_temperature(alpha, dtype, device):
    a = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0]] * 3, dtype=dtype)
    k = torch.tensor([1.0, 3.0, 0.5], dtype=dtype)
    weights = soft_top_k(a.to(device), k.to(device), alpha).cpu()
    if alpha < 1:
        want = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0.5, 0, 0, 0, 0]], dtype=dtype)
    else:
        want = (k / 5)[:, None].expand(3, 5)
    torch.testing.assert_close(weights, want)


@pytest.mark.parametrize("k", [0.0, 1e-6, 0.3, 0.5, 0.7, 1.0])
def test_one_entry_weighs_k(k, device):
    for value in (-5.0, 0.0, 1e6):
        weight = soft_top_k(torch.tensor([[value]], device=device), k, 1e-3)
        assert float(weight) == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("k", [0.5, 3.0, 8.0])
def test_zeros_of_either_sign_are_equal(k, device):
    a = torch.tensor([[0.0, -0.0] * 4], device=device)
    torch.testing.assert_close(soft_top_k(a, k, 0.01).cpu(), torch.full((1, 8), k / 8))


def test_what_is_no_number_ends(device):
    a = torch.tensor([[float("nan"), 1.0, 2.0], [float("nan")] * 3, [float("inf"), 1.0, -float("inf")]])
    assert soft_top_k(a.to(device), 1.0, 0.1).shape == a.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_values_are_worked_in_float32(dtype, device):
    pre, k = torch.randn(2, 60, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 7.5])
    pre = pre.to(dtype).float()
    chosen = soft_pairs(pre.to(device), k.to(device), 0.1, 0.1)
    values = chosen.pairs.of(pre.to(device)).to(dtype).requires_grad_()
    weights = weights_at(values, k.to(device), 0.1, chosen)
    want = soft_top_k_reference(pre.relu(), k, 0.1)[chosen.pairs.rows.cpu(), chosen.pairs.features.cpu()]
    torch.testing.assert_close(weights.cpu(), want.to(dtype))
    (gradient,) = torch.autograd.grad(weights.float().square().sum(), [values])
    assert gradient.dtype == dtype and torch.isfinite(gradient).all()


def test_a_row_is_read_a_few_times(device, monkeypatch):
    if device != "cpu":
        pytest.skip("reads are counted where kernels are interpreted")
    reads = []
    look = soft._look
    monkeypatch.setattr(soft, "_look", lambda *arguments: reads.append(1) or look(*arguments))
    monkeypatch.setattr(soft, "_COLUMNS", 1024)
    monkeypatch.setattr(soft, "_GROUPS", (256, 256))
    monkeypatch.setattr(soft, "_HALVINGS", 24)
    a = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    for alpha in (1e-4, 0.1):
        reads.clear()
        soft.row_places(a, torch.tensor([4.0, 16.5, 32.0]).double(), alpha, relu=True, moment=False)
        assert 3 <= len(reads) <= 12, alpha


def test_rows_may_lie_further_apart_than_an_int32_can_say(device, far_rows):
    k = torch.tensor([1.0, 8.0, 2.0], dtype=torch.float64, device=device)
    found = soft.row_places(far_rows, k, 1e-3, relu=False, moment=False)
    infinity = float("inf")
    assert found.lower.tolist() == [-1, -infinity, 5] and found.upper.tolist() == [infinity, -1, 6]
    assert found.above.tolist() == [0, 8, 2] and found.p.tolist() == [0, 8, 1] and found.q.tolist() == [8, 0, 1]


def test_the_same_entries_give_the_same_bits(device):
    a = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    twice = [torch.autograd.grad(soft_top_k(a, 7.3, 0.1).square().sum(), [a])[0] for _ in range(2)]
    assert torch.equal(*twice)


def test_the_kernels_are_what_is_tested(device, monkeypatch):
    called = []
    for name in ("row_places", "weigh", "weigh_back"):
        real = getattr(soft, name)
        monkeypatch.setattr(
            soft, name, lambda *a, name=name, real=real, **b: called.append(name) or real(*a, **b)
        )
    pre = torch.rand(2, 9, device=device, requires_grad=True)
    soft_top_k(pre, 2.0, 0.1).square().sum().backward()
    assert called == ["row_places", "weigh", "weigh_back"]
    k = torch.tensor([2.0, 3.0], device=device)
    chosen = soft_pairs(pre, k, 0.1, 0.1)
    values = chosen.pairs.of(pre.detach()).requires_grad_()
    weights_at(values, k, 0.1, chosen).square().sum().backward()
    assert called[3:] == ["row_places", "weigh", "weigh_back"]
