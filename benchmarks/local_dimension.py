"""Does a token's k follow the local intrinsic dimension of the activations around it (SoftSAE's claim)?

    python benchmarks/local_dimension.py STORE SAE [SAE ...] [--json FILE]

The dimension at a held-out token is estimated from its nearest neighbours among held-out tokens, by TwoNN
(Facco et al. 2017) and by maximum likelihood (Levina and Bickel 2004), both from scikit-dimension (extra
``benchmarks``). Printed are Spearman's coefficients of k with either estimate and with the squared length of the
activation, and of the length with the estimates: what a k that only measures length would get.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from skdim.id import MLE, TwoNN
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import apportion as ap
from apportion.metrics import spearman


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("saes", nargs="+")
    parser.add_argument(
        "--tokens", type=int, default=20_000, help="held-out tokens that neighbours are sought in"
    )
    parser.add_argument("--points", type=int, default=1000, help="tokens whose dimension is estimated")
    parser.add_argument("--neighbours", type=int, default=100)
    parser.add_argument("--heldout", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    x = spread_rows(ap.StoreSource(arguments.store, heldout=arguments.heldout), arguments.tokens)
    chosen = torch.arange(min(arguments.points, len(x)))
    dimensions = local_dimensions(x, chosen, arguments.neighbours)
    length = x[chosen].square().sum(1)
    rows = []
    for path in arguments.saes:
        sae = ap.load(path)
        k = sae.encode(x[chosen]).counts()
        seed = sae.metadata["training"]["config"]["seed"]
        row: dict[str, object] = {"sae": Path(path).name, "seed": seed, "k": float(k.double().mean())}
        row |= {f"k_{name}": spearman(k, values) for name, values in dimensions.items()}
        row |= {f"length_{name}": spearman(length, values) for name, values in dimensions.items()}
        row |= {"k_length": spearman(k, length), "points": len(chosen), "neighbours": arguments.neighbours}
        row |= {f"median_{name}": float(values.median()) for name, values in dimensions.items()}
        rows.append(row)
        print(json.dumps(row))
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


def spread_rows(source: ap.Source, n: int) -> Tensor:
    """[n, d_in] evaluation rows, no two alike, drawn from the whole part: many documents are among them."""
    rows = torch.cat([batch.x for batch in source.blocks("evaluate", None)])
    rows = torch.unique(rows, dim=0)  # a first token is the same in every text; no distance may be zero
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:n]]


def local_dimensions(x: Tensor, chosen: Tensor, neighbours: int) -> dict[str, Tensor]:
    """Estimates [len(chosen)] by name, each from the nearest ``neighbours`` rows of ``x``."""
    points = x[chosen].numpy()
    distances, indices = NearestNeighbors(n_neighbors=neighbours + 1).fit(x.numpy()).kneighbors(points)
    others = (distances[:, 1:], indices[:, 1:])  # the token itself comes first
    likelihood = MLE().fit(points, precomputed_knn_arrays=others, n_neighbors=neighbours).dimension_pw_
    two = [TwoNN().fit(x[around].numpy()).dimension_ for around in indices]
    return {"mle": torch.as_tensor(likelihood), "two_nn": torch.tensor(two)}


if __name__ == "__main__":
    main()
