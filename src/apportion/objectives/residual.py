"""What features that are short of work could still explain: the core of aux-k and aux-zipf."""

from __future__ import annotations

import torch
from torch import Tensor

from ..code import Code
from ..trace import Dictionary, Trace


def unexplained(
    trace: Trace, dictionary: Dictionary, gain: Tensor, k_aux: int | None, rows: float
) -> Tensor | None:
    """[]: mean|e - e_hat|^2 / mean|e - mean e|^2 for the detached residual e = x - x_hat.

    e_hat is decoded, without ``b_dec``, from each token's ``k_aux`` largest products of affinity and gain. None
    where no feature has a gain or the residual does not vary.

    Args:
        gain: [d_sae], at least 0; only features above 0 take part.
        k_aux: features per token; None for d_in / 2.
        rows: share of the tokens that it is computed on; 1 is exact.
    """
    features = (gain > 0).nonzero().squeeze(1)
    if len(features) == 0:
        return None
    # Batches are shuffled, so that evenly spaced rows are a fair share.
    n_rows = max(round(rows * trace.pre.n), 1)
    some = torch.arange(n_rows, device=trace.x.device) * trace.pre.n // n_rows
    residual = (trace.x - trace.x_hat).detach()[some]
    spread = (residual - residual.mean(0)).square().sum(1).mean()
    if not spread > 0:
        return None
    k = min(k_aux or max(dictionary.d_in // 2, 1), len(features))
    pre = trace.pre.narrow(some, features)
    pairs = pre.top_gained(torch.full((pre.n,), k, device=some.device), gain)
    code = Code.from_pairs(*pairs, pre.at(pairs) * gain[pairs.features], pre.n, pre.d_sae)
    return (residual - dictionary.decode(code, bias=False)).square().sum(1).mean() / spread
