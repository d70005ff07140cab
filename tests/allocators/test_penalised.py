"""Rules that are held to k by a price, against the formulas of their papers in float64."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import (
    AllocatorConfig,
    GatedConfig,
    JumpReLUConfig,
    ReLUConfig,
)
from apportion.clock import END, Clock
from apportion.errors import InvalidConfig
from apportion.firing import Firing
from apportion.schedules import Linear

from ..conftest import inputs, make_sae

K = 8


def dense(sae, x):
    """[n, d_sae] pre-activations by autograd."""
    return (x - sae.b_dec) @ sae.W_enc + sae.b_enc


def gradients(loss, sae):
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def agree(ours, theirs):
    for name, want in theirs.items():
        torch.testing.assert_close(ours[name], want, rtol=1e-9, atol=1e-11, msg=name)


def test_relu_pays_the_l1_norm():
    sae, x = make_sae(ReLUConfig(k=K), dtype=torch.float64), inputs(40, dtype=torch.float64)
    trace, z = sae.trace(x), dense(sae, x).relu()
    torch.testing.assert_close(trace.code.to_dense(), z)
    torch.testing.assert_close(trace.penalty.cost, z.sum() / 40)
    assert trace.penalty.k == K
    agree(gradients(trace.penalty.cost, sae), gradients(z.sum() / 40, sae))


def test_an_annealed_exponent_is_the_power_above_its_floor():
    sae, x = make_sae(ReLUConfig(k=K, p=0.4), dtype=torch.float64), inputs(40, dtype=torch.float64)
    z = dense(sae, x).relu()
    floor = 1e-3 * z.detach().sum() / (z > 0).sum()
    cost = sae.trace(x).penalty.cost
    fired = z[z > 0]
    torch.testing.assert_close(cost, fired.clamp(min=floor).pow(0.4).sum() / 40)
    # Floored entries keep the slope of the floor.
    slope = 0.4 * fired.detach().clamp(min=floor).pow(-0.6)
    agree(gradients(cost, sae), gradients((slope * fired).sum() / 40, sae))


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (0.0, r"p = 0 at the start"),
        (-1.0, r"p = -1 at the start"),
        (Linear(start=1.0, end=0.0), r"p = 0 at the end"),
    ],
)
def test_an_exponent_that_is_not_positive_is_refused(p, words):
    with pytest.raises(
        InvalidConfig, match=rf"{words} of a run, expected above 0; give 0\.2 or more, say"
    ) as refusal:
        ReLUConfig.parse({"k": K, "p": p}, "relu")
    assert "\n" not in str(refusal.value)
    assert ReLUConfig.parse({"k": K, "p": 1e-3}, "relu").p(END) == 1e-3


def test_an_exponent_that_is_not_positive_in_between_is_refused_there():
    """A schedule from outside may dip."""
    config = ReLUConfig(k=K).model_copy(update={"p": lambda clock: 1 - 2 * clock.progress})
    sae, x = make_sae(config), inputs(8)
    sae.trace(x, Clock(4, 10))
    with pytest.raises(InvalidConfig, match=r"p = 0 at step 5, expected above 0"):
        sae.trace(x, Clock(5, 10))


def test_the_penalty_holds_steady_while_p_falls():
    config = ReLUConfig(k=K, p=Linear(start=1.0, end=0.2))
    sae, x, n = make_sae(config), inputs(256), 100
    costs = []
    for step in range(n):
        trace = sae.trace(x, Clock(step, n))
        costs.append(float(trace.penalty.cost.detach()))
        sae.allocator.observe(trace, sae.dictionary(), Firing(sae.d_sae))
    assert max(costs) / min(costs) < 1 + 1e-4
    before = float(sae.allocator.steady)
    sae.allocator.observe(sae.trace(x, END), sae.dictionary(), Firing(sae.d_sae))
    assert float(sae.allocator.steady) == before != 1.0  # p has arrived


def test_jump_relu_is_the_published_forward_and_gradient():
    config = JumpReLUConfig(k=K, theta=0.2, width=0.1)
    sae, x = make_sae(config, dtype=torch.float64), inputs(300, dtype=torch.float64)
    trace = sae.trace(x)
    theta, width = sae.allocator.theta().detach(), sae.allocator.width
    assert width == pytest.approx(0.1 * 24**0.5) and torch.allclose(
        theta, torch.full((96,), 0.2 * 24**0.5).double()
    )
    pi = dense(sae, x)
    z = pi * (pi > theta)
    torch.testing.assert_close(trace.code.to_dense(), z)
    torch.testing.assert_close(trace.penalty.cost, (pi > theta).double().sum() / 300)
    seen = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = gradients((trace.x_hat * seen).sum(), sae)
    agree(
        {name: grad for name, grad in ours.items() if name != "allocator.log_theta"},
        {
            name: grad
            for name, grad in gradients(((z @ sae.W_dec + sae.b_dec) * seen).sum(), sae).items()
            if name != "allocator.log_theta"
        },
    )
    inside = ((pi - theta).abs() < width / 2).double().detach()
    d_z = seen @ sae.W_dec.T
    want = theta * (-(theta / width) * inside * d_z).sum(0)  # the last factor from theta to its logarithm
    torch.testing.assert_close(ours["allocator.log_theta"], want.detach())
    below = (pi < theta).double() * inside
    assert below.sum() > 50, "half of the window lies below the threshold"
    price = gradients(trace.penalty.cost, sae)
    torch.testing.assert_close(price["allocator.log_theta"], theta * (-inside / width).sum(0) / 300)
    assert all(not grad.any() for name, grad in price.items() if name != "allocator.log_theta")


def test_pace_moves_the_logarithm_so_many_times_faster():
    slow, fast = (make_sae(JumpReLUConfig(k=K, pace=pace)) for pace in (1.0, 10.0))
    assert torch.allclose(slow.allocator.theta(), fast.allocator.theta())
    before = fast.allocator.theta().log()
    with torch.no_grad():
        fast.allocator.log_theta += 0.01
    torch.testing.assert_close(
        fast.allocator.theta().log() - before, torch.full((96,), 0.1), rtol=1e-3, atol=1e-5
    )


def test_gated_is_the_published_forward_and_gradient():
    sae, x = make_sae(GatedConfig(k=K, rows=1), dtype=torch.float64), inputs(40, dtype=torch.float64)
    rule = sae.allocator
    with torch.no_grad():
        rule.r.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
        rule.b_mag.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
    trace = sae.trace(x)
    linear = (x - sae.b_dec) @ sae.W_enc
    pi = linear + sae.b_enc
    z = (pi > 0) * (rule.r.exp() * linear + rule.b_mag).relu()
    torch.testing.assert_close(trace.code.to_dense(), z)
    x_hat = z @ sae.W_dec + sae.b_dec
    main = gradients((x - trace.x_hat).square().sum(), sae)
    agree(main, gradients((x - x_hat).square().sum(), sae))
    assert main["encoder.bias"].abs().max() < 1e-9, "the reconstruction reaches the magnitude only"
    torch.testing.assert_close(trace.penalty.cost, pi.relu().sum() / 40)
    terms = rule.terms(trace, sae.dictionary())
    gate = (x - (pi.relu() @ sae.W_dec.detach() + sae.b_dec.detach())).square().sum() / 40
    torch.testing.assert_close(terms["gate"], gate)
    own = gradients(terms["gate"] + trace.penalty.cost, sae)
    agree(own, gradients(gate + pi.relu().sum() / 40, sae))
    assert not own["W_dec"].any() and not own["allocator.r"].any()


def test_while_most_features_fire_the_gate_is_reconstructed_on_some_rows():
    sae, x = make_sae(GatedConfig(k=K, rows=0.25), dtype=torch.float64), inputs(40, dtype=torch.float64)
    trace = sae.trace(x)
    assert trace.code.matrix is not None
    some = torch.arange(10) * 4
    gate = (dense(sae, x).relu() @ sae.W_dec.detach() + sae.b_dec.detach())[some]
    want = (x[some] - gate).square().sum() / 10
    terms = sae.allocator.terms(trace, sae.dictionary())
    torch.testing.assert_close(terms["gate"], want)
    agree(gradients(terms["gate"], sae), gradients(want, sae))
    with torch.no_grad():  # and on all of them once few do
        sae.encoder.bias.sub_(6.0)
    trace = sae.trace(x)
    assert trace.code.matrix is None and trace.code.nnz > 0
    want = (x - (dense(sae, x).relu() @ sae.W_dec.detach() + sae.b_dec.detach())).square().sum() / 40
    torch.testing.assert_close(sae.allocator.terms(trace, sae.dictionary())["gate"], want)


def test_a_frozen_gate_gives_the_magnitudes_of_what_it_lets_through():
    sae, x = make_sae(GatedConfig(k=K)), inputs(200)
    with torch.no_grad():
        sae.allocator.r.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
        sae.allocator.b_mag.normal_(std=0.5, generator=torch.Generator().manual_seed(3))
        frozen, calibration = sae.calibrate(lambda: iter([x]), K)
        linear = (x - sae.b_dec) @ sae.W_enc
        magnitude = (sae.allocator.r.exp() * linear + sae.allocator.b_mag).relu()
        z = magnitude * (linear + sae.b_enc > frozen.allocator.theta)
    assert float(frozen.allocator.theta) > 0 and calibration.l0 == pytest.approx(K, rel=1e-3)
    torch.testing.assert_close(frozen.encode(x).to_dense(), z, rtol=1e-4, atol=1e-5)


def test_calibration_keeps_the_proportions_of_learned_thresholds():
    sae, x = make_sae(JumpReLUConfig(k=K, theta=0.1, width=0.1)), inputs(500)
    with torch.no_grad():
        sae.allocator.log_theta.add_(torch.randn(96, generator=torch.Generator().manual_seed(4)))
    frozen, calibration = sae.calibrate(lambda: iter(x.split(100)), K)
    ratio = frozen.allocator.theta / sae.allocator.theta().detach()
    torch.testing.assert_close(ratio, ratio[:1].expand(96))
    assert calibration.l0 == pytest.approx(K, rel=1e-3)


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "gated"])
def test_a_budget_of_nothing_is_refused(kind):
    with pytest.raises(InvalidConfig, match="'k' = 0"):
        AllocatorConfig.lookup(kind).parse({"k": 0}, kind)
