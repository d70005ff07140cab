"""From folders to a page: which SAEs it shows, what it says of what is missing, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.activations import LoadedModel, StoreSource
from apportion.compare import Seed
from apportion.compare.base import Measured
from apportion.errors import InvalidConfig, InvalidInput
from apportion.report import report
from apportion.report.curves import known_dead, read_curve
from apportion.report.report import in_detail

from ..compare.conftest import many_documents
from ..training.training_kit import D_IN, config, settings
from . import report_kit


def measured(method: str, k: float, seed: int = 0) -> Measured:
    return Measured(f"{method}-k{k}-s{seed}", method, k, Seed(seed, seed), {})


def test_every_method_is_shown_at_the_k_that_most_have_before_any_is_shown_twice() -> None:
    saes = [measured(m, k, s) for m in "ab" for k in (8, 16, 32) for s in (0, 1)]
    saes += [measured("c", 16), measured("d", 20)]

    def shown(most: int) -> list[tuple[str, float]]:
        return [(sae.method, sae.k) for sae in in_detail(saes, most) if sae.seed == Seed(0, 0)]

    assert shown(4) == [("a", 16), ("b", 16), ("c", 16), ("d", 20)]
    assert shown(5)[:3] == [("a", 8), ("a", 16), ("b", 16)] or shown(5)[:3] == [("a", 16), ("a", 32), ("b", 16)]
    assert shown(2) == [("a", 16), ("b", 16)]
    assert len(shown(99)) == 8


def test_a_curve_is_thinned_to_its_ends_and_a_folder_without_one_has_none(tmp_path: Path) -> None:
    lines = [f'{{"tokens": {t}, "fvu": {1 / t}, "l0": 3, "dead": null}}' for t in range(1, 1001)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    curve = read_curve(tmp_path, 50)
    assert curve is not None and len(curve["tokens"]) == 50
    assert curve["tokens"][0] == 1 and curve["tokens"][-1] == 1000 and curve["dead"] == [None] * 50
    assert read_curve(tmp_path / "none") is None
    (tmp_path / "log.jsonl").write_text("")
    assert read_curve(tmp_path) is None
    assert known_dead({"tokens": [1, 2, 3], "dead": [0.0, 0.0, 0.5]}, 2)["dead"] == [None, 0.0, 0.5]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("not json", "is not valid JSON"),
        ("[3]", r"is no record but '\[3\]'"),
        ('{"tokens": 9, "fvu": "much"}', "has fvu = much, which is no number"),
        ('{"tokens": 9, "fvu": NaN}', "has fvu = nan, which is no number"),
        ('{"tokens": 9, "l0": 1e999}', "has l0 = inf, which is no number"),
        ('{"tokens": 9, "dead": true}', "has dead = True, which is no number"),
        ('{"fvu": 0.5}', "has tokens = None, which is no number"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_log_that_holds_no_numbers_is_named_with_its_line(tmp_path: Path, line: str, fault: str) -> None:
    good = '{"tokens": 1, "fvu": 0.5, "l0": 3, "dead": null}'
    (tmp_path / "log.jsonl").write_text("\n".join([good, line, *[good] * 400]), errors="surrogateescape")
    place = "log.jsonl " if fault == "cannot be read" else "log.jsonl, line 2 "
    with pytest.raises(InvalidInput, match=place + fault):
        read_curve(tmp_path)


def test_what_is_wrong_with_an_sae_and_its_log_stands_in_the_page(
    runs: dict[str, ap.SAE | str | Path], source: StoreSource, tmp_path: Path
) -> None:
    given: dict[str, ap.SAE | str | Path] = {}
    for name, folder in list(runs.items())[:2]:
        given[name] = Path(shutil.copytree(folder, tmp_path / Path(folder).name))
    bad, other = given
    sae = ap.load(given[bad])
    sae.metadata["training"]["l0_train"] = 2 * sae.k
    ap.save(sae, given[bad])
    (tmp_path / Path(given[other]).name / "log.jsonl").write_text('{"tokens": 64, "fvu": "much"}')
    found = report(given, source, tmp_path / "page.html", oracle=8, features=5, notes=["8 of 10 are missing"])
    sentence = found.saes[0].caveats[0]
    assert sentence.startswith(f"run '{bad}' ended its training at L0 = {2 * sae.k:.1f} and not at k = {sae.k:g}")
    text = (tmp_path / "page.html").read_text()
    assert "<li>8 of 10 are missing</li>" in text and "line 1 has fvu = much" in text
    escaped = sentence.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
    # At the top, below five charts of it and the three of its training, and below every table that it is in.
    assert text.count(f'<li class="caveat">† {escaped}</li>') >= 1 + 5 + 3 + 2
    assert "· k 3 †</button>" in text and "· k 3 †</h3>" in text and "· k 3 †</option>" in text
    assert '"symbol":["circle-open"' in text or '"symbol": ["circle-open"' in text


def test_a_source_without_text_gives_all_other_sections(tmp_path: Path) -> None:
    rows = many_documents()
    sae = ap.train({"one-k3": config(k=3)}, rows, tmp_path / "runs", settings(20))["one-k3"]
    found = report({"one-k3": sae}, rows, tmp_path / "page.html", oracle=None)
    text = (tmp_path / "page.html").read_text()
    assert found.left_out == {}
    assert "No text can be shown: a TensorSource keeps no text behind its activations" in text
    assert "Allocation efficiency was not measured" in text and "none of the folders holds the log" in text
    assert 'id="chart-front-fvu"' in text and 'id="chart-densities"' in text and 'id="data-features-0"' in text
    assert 'id="data-tokens"' not in text and 'id="chart-training-fvu"' not in text


def test_an_sae_that_never_fires_is_shown_beside_the_others(tmp_path: Path) -> None:
    rows = many_documents()
    saes = ap.train({f"one-k{k}": config(k=k) for k in (3, 5)}, rows, tmp_path / "runs", settings(20))
    silent = ap.train({"silent-k3": config(k=3)}, rows, tmp_path / "silent", settings(20))["silent-k3"]
    with torch.no_grad():
        silent.encoder.bias.fill_(-1e6)
    report({**saes, "silent-k3": silent}, rows, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert 'id="chart-front-fvu"' in text and 'id="chart-budgets"' in text and "silent" in text


def test_what_is_left_out_stands_in_the_page(
    runs: dict[str, ap.SAE | str | Path], source: StoreSource, tmp_path: Path
) -> None:
    first = next(iter(runs.values()))
    wide = ap.train({"wide-k3": config(k=3, d_sae=80)}, source, tmp_path / "wide", settings(20))["wide-k3"]
    found = report({"a-k3": first, "wide-k3": wide}, source, tmp_path / "page.html", oracle=None, features=5)
    assert "it has 80 features and a-k3 64; compare SAEs of one width" in found.left_out["wide-k3"]
    text = (tmp_path / "page.html").read_text()
    assert "wide-k3 is left out:" in text and "no model was given" in text
    assert "tokenizer of speaker is not at hand" in text


def test_another_model_of_the_same_name_is_refused(
    runs: dict[str, ap.SAE | str | Path], source: StoreSource, model: LoadedModel
) -> None:
    ap.compare(runs, source, model=model, limit=50)
    tuned, narrow = report_kit.speaker(), report_kit.speaker()
    assert tuned.name == narrow.name == model.name
    with torch.no_grad():
        tuned.model.block.weight.mul_(1.2)
    narrow.model.block = torch.nn.Linear(D_IN, 5)
    for other, how in ((tuned, r"that differ by \d+% of their square"), (narrow, f"of width 5 and not {D_IN}")):
        with pytest.raises(InvalidInput, match=f"speaker has states {how}, at block on the first .* weights"):
            ap.compare(runs, source, model=other, limit=50)


def test_bad_input_is_refused_before_anything_is_measured(
    runs: dict[str, ap.SAE | str | Path], source: StoreSource, model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match="detailed = 0 shows nothing; give at least 1"):
        report(runs, source, tmp_path / "page.html", detailed=0)
    with pytest.raises(InvalidConfig, match="is a folder; give the name of an HTML file"):
        report(runs, source, tmp_path)
    other = ap.TensorSource(torch.randn(4000, 16))
    with pytest.raises(InvalidInput, match=r"none of the 4 SAEs can be compared; .* it was trained on"):
        report(runs, other, tmp_path / "page.html")
    with pytest.raises(InvalidInput, match="there are 0 SAEs to compare"):
        report({}, source, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
