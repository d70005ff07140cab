"""What features that are short of work could still explain: the core of aux-k and aux-zipf."""

from __future__ import annotations

import torch
from torch import Tensor

from ..code import Code, MatrixCode
from ..ops.select import mark_rows
from ..trace import Dictionary, Trace

_FEW = 4
"""Up to how many times k_aux features matrices are taken for them, and pairs listed beyond.

On 512 tokens, d_in 768, k_aux 384, pairs cost 0.21 of the encoder's product however many features there are,
matrices 0.08 with 819 features, and in proportion to them.
"""


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
    decoded = _from_matrices if len(features) <= _FEW * k else _from_pairs
    e_hat = decoded(trace, dictionary, some, features, gain, k)
    return (residual - e_hat).square().sum(1).mean() / spread


def _from_pairs(
    trace: Trace, dictionary: Dictionary, rows: Tensor, features: Tensor, gain: Tensor, k: int
) -> Tensor:
    """[m, d_in]: e_hat of some rows, from a list of the chosen pairs."""
    pre = trace.pre.narrow(rows, features)
    pairs = pre.top_gained(torch.full((pre.n,), k, device=rows.device), gain)
    code = Code.from_pairs(*pairs, pre.at(pairs) * gain[pairs.features], pre.n, pre.d_sae)
    return dictionary.decode(code, bias=False)


def _from_matrices(
    trace: Trace, dictionary: Dictionary, rows: Tensor, features: Tensor, gain: Tensor, k: int
) -> Tensor:
    """The same, from the part of the dictionary that the features are."""
    part, gain, x = dictionary.part(features), gain[features], trace.x[rows]
    with torch.no_grad():
        centred = x - part.b_dec
        pre = torch.addmm(part.b_enc, centred, part.weight.T)
        share = mark_rows(pre * gain, k) * gain
    z = part.encode_whole(x, centred, pre) * share
    return part.decode(MatrixCode(z), bias=False)
