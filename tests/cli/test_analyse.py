"""``apportion analyse`` from the command line, on a store whose texts have labels and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import apportion as ap
from apportion.analysis import adaptivity, labels_of

from .conftest import TEXTS, Command
from .test_bad_input import assert_refused


@pytest.fixture
def labelled(store: Path, tmp_path: Path) -> list[str | Path]:
    """The arguments for labels and scores of the store's texts."""
    rows = [{"id": str(i), "text": TEXTS[i], "kind": "odd" if i % 7 > 3 else "even"} for i in range(99)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    header = {"format": "apportion-scores", "scorer": "column", "direction": -1}
    scores = [{"id": str(i), "score": -(i % 7)} for i in range(99)]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, [header, *scores])))
    return ["--labels", tmp_path / "texts.jsonl", "--field", "kind", "--scores", tmp_path / "scores.jsonl"]


@pytest.fixture
def run(command: Command, train: list[str | Path], tmp_path: Path) -> Path:
    done = command(*train, "--recipe", "mutual_choice", "--heldout", "0.5")
    assert done.status == 0, done.err
    return tmp_path / "runs"


def test_what_k_follows(command: Command, run: Path, store: Path, labelled: list[str | Path]) -> None:
    done = command("analyse", run, "--data", store, *labelled, "--json")
    assert done.status == 0, done.err
    found = {row["covariate"]: row for row in done.rows}
    assert list(found) == ["position", "length", "error", "column", "frequency", "dimension", "kind"]
    less = command("analyse", run, "--data", store, "--neighbours", "0", "--json")
    assert "dimension" not in {row["covariate"] for row in less.rows}
    sae = ap.load(run / "mutual_choice-k4")
    source = ap.StoreSource(store, heldout=0.5)
    batches = list(source.blocks("evaluate"))
    k = torch.cat([sae.encode(batch.x).counts() for batch in batches]).numpy()
    document = torch.cat([batch.document for batch in batches]).numpy()
    assert found["position"]["tokens"] == len(k) and found["kind"]["rho"] is None
    ids = np.array(source.documents)[document].astype(int)
    for one in found["kind"]["bins"]:
        own = k[(ids % 7 > 3) == (one["label"] == "odd")]
        assert one["tokens"] == len(own) and one["k"]["mean"] == pytest.approx(own.mean())
    assert [one["low"] for one in found["column"]["bins"]] == sorted(set((ids % 7).tolist())), (
        "complexity upwards"
    )
    assert found["position"]["bins"][0]["low"] == 0
    table = command("analyse", run, "--data", store, *labelled).out.splitlines()
    assert table[0].split()[:3] == ["run", "covariate", "rho"]
    assert len(table) == 1 + sum(len(row["bins"]) for row in found.values())


def test_a_token_s_covariates_are_its_own(command: Command, run: Path, store: Path) -> None:
    sae, source = ap.load(run / "mutual_choice-k4"), ap.StoreSource(store, heldout=0.5)
    tokens, half = adaptivity(sae, source), adaptivity(sae, source, every=2)
    assert 0 < len(half.k) < len(tokens.k)
    ids = torch.cat([one.input_ids[one.keep] for one in source.contexts("evaluate")])
    share = tokens.covariates["frequency"]
    assert isinstance(share, np.ndarray)
    for token in ids.unique()[:5]:
        assert np.allclose(share[ids == token], (ids == token).double().mean())
    _, starts = source.context_starts()
    assert (starts == 0).all() and np.array_equal(tokens.covariates["position"], tokens.position)
    x = torch.cat([batch.x for batch in source.blocks("evaluate")])
    error = (x - sae(x)).double().square().sum(1)
    assert np.allclose(tokens.covariates["error"], error, rtol=1e-5)
    at = {(d, p): i for i, (d, p) in enumerate(zip(tokens.document, tokens.position, strict=True))}
    own = [at[place] for place in zip(half.document, half.position, strict=True)]
    for name in ("frequency", "length", "error"):
        assert np.allclose(tokens.covariates[name][own], half.covariates[name], rtol=1e-5)


def test_probes_of_labels(command: Command, run: Path, store: Path, labelled: list[str | Path]) -> None:
    pytest.importorskip("sklearn")
    done = command("analyse", run, "--data", store, *labelled, "--probe", "--features", "1,3", "--json")
    assert done.status == 0, done.err
    assert [row["n_features"] for row in done.rows] == [1, 3]
    for row in done.rows:
        assert row["heldout"] + row["training"] == 99 and row["classes"] == 2
        assert 0.5 <= row["baseline"] < 0.8 and set(row["chosen"]) == {"even", "odd"}
    assert done.rows[1]["accuracy"] > done.rows[1]["baseline"], "how often 'very' comes decides the label"
    table = command("analyse", run, "--data", store, *labelled, "--probe").out.splitlines()
    assert len(table) == 4 and table[0].split()[1] == "n_features"


def test_refusals(command: Command, run: Path, store: Path, labelled: list[str | Path], tmp_path: Path) -> None:
    where: list[str | Path] = ["analyse", run, "--data", store]

    def refused(words: str, *more: str | Path) -> None:
        assert_refused(command(*where, *more), words)

    refused("belong together", *labelled[:2])
    refused("--probe needs both", "--probe")
    refused("--features = 'a'", *labelled, "--probe", "--features", "a")
    refused("make no probe", *labelled, "--probe", "--features", "97")
    refused("1 or more", "--every", "0")
    (tmp_path / "other.jsonl").write_text('{"id": "x", "text": "t", "kind": "odd"}')
    refused("none of the 99 documents has a label", "--labels", tmp_path / "other.jsonl", "--field", "kind")
    (tmp_path / "twice.jsonl").write_text('{"id": "1", "text": "t", "kind": "odd"}\n' * 2)
    refused("1 ids belong to more than one document", "--labels", tmp_path / "twice.jsonl", "--field", "kind")
    rows = [{"id": str(i), "text": TEXTS[i - 1], "kind": "odd"} for i in range(99)]
    (tmp_path / "shifted.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(
        "99 of 99 labelled documents have another text", "--labels", tmp_path / "shifted.jsonl", "--field", "kind"
    )
    with pytest.raises(ap.ApportionError, match="has a label"):
        labels_of(["a"], {"b": "word"})
