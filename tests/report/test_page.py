"""The file: what data can do to it (nothing), how large it gets, and that it asks nobody for anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

import apportion as ap
from apportion.activations import LoadedModel, StoreSource
from apportion.allocators import TokenChoiceConfig
from apportion.code import Code
from apportion.report import report
from apportion.report.catalogue import catalogue
from apportion.report.firings import Firings
from apportion.report.page import _plotly, safe_json
from apportion.report.survey import Survey
from apportion.report.tokens import Words

from ..conftest import make_sae
from .report_kit import HOSTILE, SCRIPT

MOST_BYTES = 25_000_000


class Reader(HTMLParser):
    """Elements with their attributes, what each script holds, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.words.append(data)


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner), max_leaves=8))
def test_json_in_the_page_is_the_data_and_cannot_end_its_element(data: object) -> None:
    text = safe_json(data)
    assert json.loads(text) == data
    assert not re.search("[<>&\u2028\u2029]", text)


def test_data_adds_no_element_and_is_there_as_text(page: Path) -> None:
    text = page.read_text()
    reader = Reader(text)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"b", "img", "i"}
    scripts = [attributes for tag, attributes in reader.elements if tag == "script"]
    kinds = [attributes.get("type") for attributes in scripts]
    assert kinds.count("module") == kinds.count("text/plain") == 1
    assert set(kinds) == {"module", "text/plain", "application/json"}
    assert any("<b>mutual_choice" in words for words in reader.words)
    for word in HOSTILE[:-1]:
        assert word not in text.replace(_plotly(), "")
    blocks = {
        a["id"]: s
        for a, s in zip(scripts, reader.scripts, strict=True)
        if (a.get("id") or "").startswith("data-")
    }
    assert set(blocks) == {"data-features-0", "data-features-1", "data-features-2", "data-text", "data-tokens"}
    words = json.loads(blocks["data-tokens"])["words"]
    assert f" {SCRIPT}" in words and " \u2028" in words


def test_the_page_names_no_other_place(page: Path) -> None:
    reader = Reader(page.read_text())
    for _, attributes in reader.elements:
        for name in ("src", "href", "data", "action", "srcset"):
            place = attributes.get(name)
            assert place is None or place.startswith("#") or place == "data:,"
    policies = [a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a]
    assert policies and (policies[0] or "").startswith("default-src 'none'")


def test_every_control_has_a_name_and_every_reference_a_target(page: Path) -> None:
    reader = Reader(page.read_text())
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name) is None or attributes[name] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
        assert tag != "th" or attributes.get("scope") in ("col", "row")
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("nav") == 1
    assert tags.count("caption") == tags.count("table")


def test_the_same_runs_give_the_same_bytes(
    page: Path, runs: dict[str, ap.SAE | str | Path], source: StoreSource, model: LoadedModel, tmp_path: Path
) -> None:
    report(runs, source, tmp_path / "again.html", model=model, oracle=16, detailed=3)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_five_saes_of_2000_features_fit(page: Path) -> None:
    """Their catalogues at the most that they can be, the largest table of tokens, and a real page around them."""
    generator = torch.Generator().manual_seed(0)
    n, d_sae, rows, vocabulary = 4096, 2000, 131_072, 50_000
    sae = make_sae(TokenChoiceConfig.parse({"budget": {"kind": "constant", "k": 4}}, "test"), d_sae=d_sae)
    dense = torch.rand(n, d_sae, generator=generator) * (torch.rand(n, d_sae, generator=generator) < 0.02)
    code = Code.from_dense(dense)
    density = code.firings().double() / n
    survey = Survey(torch.ones(10, dtype=torch.int64), density, density * 1.2345e-5, code)
    words, W_U = Words(None), torch.randn(vocabulary, sae.d_in, generator=generator)
    firings = Firings(code, torch.arange(0, n, 64).numpy())
    columns = catalogue(sae, survey, d_sae, firings, words, W_U)
    for contexts in columns["contexts"]:
        assert len(contexts) == 8
        for context in contexts:
            context[0] += rows - n  # numbers of the largest table have more digits
    tokens = {"words": ["a longish word"] * vocabulary, "rows": [vocabulary - 1] * rows}
    total = 5 * len(safe_json(columns)) + len(safe_json(tokens)) + page.stat().st_size
    assert total < MOST_BYTES, f"{total:,} bytes"
    assert total > 10_000_000  # else this test has lost something
