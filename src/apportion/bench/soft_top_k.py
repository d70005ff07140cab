"""What the soft top-k costs, as a multiple of the encoder's product, and how it compares with sorting."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..ops.soft_top_k import soft_pairs, soft_top_k, soft_top_k_gradients_reference, weights_at
from .timing import noisy, products, spread, timed

ALPHAS = (0.01, 0.1, 1.0)
PAIRS_ALPHAS = (1e-4, 0.01)
FLOOR = 1e-3
_REFERENCE_EVERY = 5  # rounds; it takes as long as ten products


def bench_soft_top_k(
    *,
    d_in: int = 768,
    d_sae: int = 16_384,
    k: float = 32,
    batch: int = 512,
    pairs_batch: int = 2048,
    rounds: int = 15,
) -> list[dict[str, Any]]:
    """Time forward and backward of the operator, of its sparse door and of sorting, and the encoder's product.

    All are interleaved. Affinities are ReLUs of standard normals; gradients reach affinities and k. Sorting is
    the reference run in float32.

    Returns:
        A row per door and temperature: ``door`` (dense or pairs), ``alpha, batch, seconds, product_s, ratio``;
        ``sort_s`` and ``times_faster`` than that, None for pairs; ``product_spread`` and ``noisy`` as in
        ``bench_step``.
    """
    if min(rounds, batch, pairs_batch, d_in, d_sae) < 1 or not 0 < k <= d_sae:
        raise InvalidConfig(
            f"rounds = {rounds}, batch = {batch}, d_in = {d_in}, d_sae = {d_sae}, k = {k} must be positive, "
            "and k at most d_sae"
        )
    dense, pairs = _Case(batch, d_in, d_sae, k), _Case(pairs_batch, d_in, d_sae, k)
    works: list[tuple[dict[str, Any], _Case, Callable[[float], Any]]] = [
        *(({"door": "dense", "alpha": alpha}, dense, dense.dense) for alpha in ALPHAS),
        *(({"door": "pairs", "alpha": alpha}, pairs, pairs.pairs) for alpha in PAIRS_ALPHAS),
    ]
    return [_row(label, case, work, rounds) for label, case, work in works]


class _Case:
    """The inputs of one batch size."""

    def __init__(self, batch: int, d_in: int, d_sae: int, k: float) -> None:
        generator = torch.Generator().manual_seed(12_345)
        self.products = products(torch.randn(batch, d_in, generator=generator), d_sae)
        self.pre = torch.randn(batch, d_sae, generator=generator)
        self.a = self.pre.relu().requires_grad_()
        self.k = torch.full((batch,), float(k), requires_grad=True)
        self.grad = torch.randn(batch, d_sae, generator=generator)

    def dense(self, alpha: float) -> tuple[Tensor, ...]:
        return torch.autograd.grad(soft_top_k(self.a, self.k, alpha), [self.a, self.k], self.grad)

    def pairs(self, alpha: float) -> tuple[Tensor, ...]:
        soft = soft_pairs(self.pre, self.k, alpha, FLOOR)
        values = soft.pairs.of(self.pre).requires_grad_()
        p = weights_at(values, self.k, alpha, soft)
        return torch.autograd.grad(p, [values, self.k], soft.pairs.of(self.grad))

    def sort(self, alpha: float) -> tuple[Tensor, ...]:
        """Forward and backward share one sort, so the gradients are all there is to time."""
        return soft_top_k_gradients_reference(self.a.detach(), self.k.detach(), alpha, self.grad, torch.float32)


def _row(label: dict[str, Any], case: _Case, work: Callable[[float], Any], rounds: int) -> dict[str, Any]:
    """One row; ``work`` takes the temperature."""
    alpha, has_sort = label["alpha"], label["door"] == "dense"
    times: dict[str, list[float]] = {name: [] for name in (*case.products, "work", "sort")}
    for round_number in range(rounds + 2):
        for name, multiply in case.products.items():
            times[name].append(timed(multiply)[0])
        times["work"].append(timed(lambda: work(alpha))[0])
        if round_number == 1:  # two rounds to warm up
            times = {name: [] for name in times}
        elif has_sort and round_number % _REFERENCE_EVERY == 2:
            times["sort"].append(timed(lambda: case.sort(alpha))[0])
    fastest = min(case.products, key=lambda name: statistics.median(times[name]))
    product, seconds = statistics.median(times[fastest]), statistics.median(times["work"])
    sort = statistics.median(times["sort"]) if has_sort else None
    row = {
        **label,
        "batch": len(case.pre),
        "seconds": seconds,
        "product_s": product,
        "ratio": seconds / product,
        "sort_s": sort,
        "times_faster": sort / seconds if sort is not None else None,
        "product_spread": spread(times[fastest]),
    }
    row["noisy"] = noisy(row["product_spread"])
    return row
