"""How the work is spread over the features of a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInput
from .base import Json, Metric, MetricBatch, need_tokens

LOG10_EDGES = [half / 2 for half in range(-14, 1)]
"""Edges of the density histogram: half-decades from 1e-7 to 1."""
_FEW = 8
"""One in how many features is few enough to look at them one by one."""


class FeatureDensity(Metric):
    """Density of every feature: the share of tokens on which its value is > 0.

    ``never_fires`` is the share of features with density 0. ``density_histogram`` counts features in the
    bins [e_i, e_i+1) of log10 density given by ``density_log10_edges``, the last bin closed, the first one
    open below; ``density_zero`` counts those of density 0, so that both together count every feature.
    ``density_gini`` is the Gini coefficient of the densities, 0 when all are equal and 1 − 1/d_sae when one
    feature does everything; ``None`` when nothing fires.
    """

    def __init__(self, d_sae: int) -> None:
        self._fired = torch.zeros(d_sae, dtype=torch.int64)
        self._tokens = 0

    def update(self, batch: MetricBatch) -> None:
        code = batch.code
        if code.d_sae != len(self._fired):
            raise InvalidInput(
                f"the code has {code.d_sae} features, this measure was made for {len(self._fired)}; "
                "use one FeatureDensity per dictionary"
            )
        firing = code.indices[code.values > 0]
        self._fired += torch.bincount(firing, minlength=code.d_sae).cpu()
        self._tokens += code.n

    def density(self) -> Tensor:
        """[d_sae] float64, in feature order.

        Raises:
            InvalidInput: no tokens yet.
        """
        need_tokens(self._tokens)
        return self._fired.double() / self._tokens

    def result(self) -> dict[str, Json]:
        density = self.density()
        alive = density[density > 0]
        inner = 10 ** torch.tensor(LOG10_EDGES[1:-1], dtype=torch.float64)
        bins = torch.bucketize(alive, inner, right=True)
        never = len(density) - len(alive)
        return {
            "never_fires": never / len(density),
            "density_zero": never,
            "density_log10_edges": list(LOG10_EDGES),
            "density_histogram": torch.bincount(bins, minlength=len(LOG10_EDGES) - 1).tolist(),
            "density_gini": _gini(self._fired),
        }


class Silence(Metric):
    """``silent``: the share of features whose affinity is positive on no token.

    They never fire under any rule, and no loss reaches them; others that never fire only lose to better ones.
    """

    def __init__(self, d_sae: int) -> None:
        self._d_sae, self._tokens = d_sae, 0
        self._silent = torch.arange(d_sae)

    def update(self, batch: MetricBatch) -> None:
        if batch.pre is None:
            raise InvalidInput("the block has no affinities; pass those that its code was chosen from")
        self._tokens += batch.pre.n
        silent = self._silent.to(batch.x.device)
        if len(silent) * _FEW > self._d_sae:
            peaks = batch.pre.peaks()[silent]
        else:  # soon there are next to none, and a look at all would cost a few hundredths of the evaluation
            rows = torch.arange(batch.pre.n, device=silent.device)
            peaks = batch.pre.narrow(rows, silent).peaks()[silent]
        self._silent = silent[peaks <= 0]

    def result(self) -> dict[str, Json]:
        need_tokens(self._tokens)
        return {"silent": len(self._silent) / self._d_sae}


def _gini(amounts: Tensor) -> float | None:
    """Σ_i (2i − n − 1) a_(i) / (n Σ a), amounts ``[n]`` in ascending order; ``None`` if they are all zero."""
    ascending = amounts.sort().values.double()
    n, total = len(ascending), float(ascending.sum())
    if total == 0:
        return None
    weights = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return float((weights * ascending).sum()) / (n * total)
