"""What k follows in trained SAEs, and what a few of their features tell of a document's register.

    python benchmarks/adaptivity.py STORE SAE [SAE ...] --data FILE [FILE ...] --data-every 2 --field source
        [--numbers NAME=FILE.npy ...] --out FILE.jsonl

``--data`` are the files that the store was captured from, one after the other, of which it took each
``--data-every``-th document; documents go by their place, since ids may repeat between files. ``--numbers`` are
covariates of your own, a number per document or per row of the store. The local intrinsic dimension is estimated
at some tokens as in ``local_dimension.py``. A row of --out is a covariate of an SAE, or a probe; printed are
tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from local_dimension import local_dimensions
from numpy.typing import NDArray
from torch import Tensor

import apportion as ap
from apportion.activations import iter_documents
from apportion.activations.files import Folder
from apportion.activations.reading import StoreReader
from apportion.analysis import Tokens, adaptivity, register_probes
from apportion.metrics import Classes, Covariate, Interval, Relation, SparseProbe

Keys = NDArray[np.int64]


def main() -> None:
    arguments = parsed()
    source = ap.StoreSource(arguments.store, heldout=arguments.heldout)
    register = registers(arguments.data, arguments.field, arguments.data_every, source.documents)
    numbers = {name: np.load(path) for name, path in (one.split("=", 1) for one in arguments.numbers)}
    of_documents: dict[str, Covariate] = {"register": register}
    of_documents |= {name: one for name, one in numbers.items() if len(one) == len(source.documents)}
    of_rows = {name: one for name, one in numbers.items() if name not in of_documents}
    saes = {Path(path).name: ap.load(path) for path in arguments.saes}
    followed: dict[str, list[Relation]] = {}
    probed: dict[str, list[SparseProbe]] = {}
    shared: dict[str, Covariate] = {}
    arguments.out.write_text("")
    for name, sae in saes.items():
        tokens = adaptivity(sae, source, of_documents=of_documents, every=arguments.every, progress=True)
        if not shared:
            rows = StoreReader(Folder(arguments.store), None, verify=False).begins[tokens.document]
            shared |= {key: one[rows + tokens.position] for key, one in of_rows.items()}
            shared |= dimensions(source, tokens, arguments.points, arguments.neighbours)
        tokens.covariates.update(shared)
        followed[name] = tokens.relations()
        write(arguments.out, name, sae, followed[name])
    for name, sae in saes.items():
        tokens_each = arguments.document_tokens
        probed[name] = register_probes(sae, source, register, document_tokens=tokens_each, progress=True)
        write(arguments.out, name, sae, probed[name])
    print(table_of_relations(followed))
    print(table_of_classes(followed, "register"))
    print(table_of_probes(probed))


def write(out: Path, name: str, sae: ap.SAE, rows: Sequence[Relation] | Sequence[SparseProbe]) -> None:
    """Add what was found of an SAE."""
    about = {"sae": name, "k": sae.k, "seed": sae.metadata["training"]["config"]["seed"]}
    with out.open("a") as file:
        for row in rows:
            file.write(json.dumps({**about, "row": type(row).__name__, **asdict(row)}) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("saes", nargs="+")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--data-every", type=int, default=1)
    parser.add_argument("--field", default="source")
    parser.add_argument("--numbers", nargs="*", default=[])
    parser.add_argument("--every", type=int, default=6, help="read each so many-th held-out context")
    parser.add_argument("--document-tokens", type=int, default=128, help="of each document, for probes")
    parser.add_argument("--points", type=int, default=1000, help="tokens whose dimension is estimated")
    parser.add_argument("--neighbours", type=int, default=100)
    parser.add_argument("--heldout", type=float, default=0.3)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def registers(data: Sequence[str], field: str, every: int, ids: Sequence[str]) -> Classes:
    """The word of each document of the store, by its place."""
    names: dict[str, int] = {}
    documents = [
        document
        for path in data
        for document in iter_documents(
            path, target_field=field, read_target=lambda value: float(names.setdefault(value, len(names)))
        )
    ][::every]
    assert [document.id for document in documents] == list(ids), "the store was captured from other documents"
    return Classes(list(names), np.array([int(document.target or 0) for document in documents]))


def dimensions(source: ap.StoreSource, tokens: Tokens, points: int, neighbours: int) -> dict[str, Covariate]:
    """The local intrinsic dimension at some tokens, by two estimators; NaN at all others."""
    x = activations(source, tokens)
    _, first = np.unique(x.numpy(), axis=0, return_index=True)  # no distance may be zero
    drawn = np.random.default_rng(0).permutation(first)[:20_000]
    some = torch.arange(min(points, len(drawn)))
    found: dict[str, Covariate] = {}
    for name, values in local_dimensions(x[torch.from_numpy(drawn)], some, neighbours).items():
        column = np.full(len(x), np.nan)
        column[drawn[: len(some)]] = values.numpy()
        found[f"dimension ({name})"] = column
    return found


def activations(source: ap.StoreSource, tokens: Tokens) -> Tensor:
    """[n, d_in] of the tokens."""
    wanted = _keys(tokens.document, tokens.position)
    found = []
    for batch in source.blocks("evaluate"):
        assert batch.document is not None and batch.position is not None
        own = np.isin(_keys(batch.document.numpy(), batch.position.numpy()), wanted)
        found.append(batch.x[torch.from_numpy(own)])
    return torch.cat(found)


def _keys(document: Keys, position: Keys) -> Keys:
    return (document << 32) + position


def table_of_relations(followed: Mapping[str, Sequence[Relation]]) -> str:
    """A line per covariate: Spearman's coefficient and the share of variance between bins, of each SAE."""
    lines = [_line(["covariate", "tokens", "documents", *followed]), _rule(3 + len(followed))]
    for same in zip(*followed.values(), strict=True):
        cells = [f"{_cell(one.rho, 3)}, {_share(one.explained)}" for one in same]
        lines.append(_line([same[0].covariate, f"{same[0].tokens:,}", str(same[0].documents), *cells]))
    return "\n".join([*lines, ""])


def table_of_classes(followed: Mapping[str, Sequence[Relation]], covariate: str) -> str:
    """A line per class: the mean k of each SAE."""
    bins = [
        {one.label: one for one in next(r for r in relations if r.covariate == covariate).bins}
        for relations in followed.values()
    ]
    lines = [_line([covariate, "tokens", "documents", *followed]), _rule(3 + len(followed))]
    for label, one in bins[-1].items():
        cells = [_cell(own[label].k, 1) for own in bins]
        lines.append(_line([label, f"{one.tokens:,}", str(one.k.n), *cells]))
    return "\n".join([*lines, ""])


def table_of_probes(probed: Mapping[str, Sequence[SparseProbe]]) -> str:
    """A line per SAE: the accuracy of each number of features."""
    first = next(iter(probed.values()))
    lines = [
        _line(["SAE", *(f"n = {one.n_features}" for one in first), "most common"]),
        _rule(2 + len(first)),
    ]
    for name, own in probed.items():
        lines.append(_line([name, *(_cell(one.accuracy, 3) for one in own), f"{own[0].baseline:.3f}"]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _cell(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "–"
    half = "" if interval.half is None else f" ± {interval.half:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
