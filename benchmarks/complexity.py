"""How well scores without a judge follow what people say: Spearman with human ratings, complexity upwards.

    python benchmarks/complexity.py clear_complexity.jsonl.gz --column easiness --direction down --model tiny-lm

The data need a numeric column of ratings. A score's direction is applied, so that agreement is positive.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scipy.stats import spearmanr

from apportion.activations import iter_documents, load_model
from apportion.activations.contexts import most_positions
from apportion.activations.store import cutter_of
from apportion.complexity import (
    ColumnConfig,
    LanguageModel,
    ReadabilityConfig,
    Scorer,
    SurprisalConfig,
    Text,
    Tools,
)
from apportion.complexity.base import number_in
from apportion.complexity.readability import FORMULAS


def language_model(name: str, context: int | None) -> LanguageModel:
    loaded = load_model(name)
    length = context or most_positions(loaded.model) or 1024
    return LanguageModel(loaded, cutter_of(loaded, (), length, tensors=False), length)


def agreement(scorer: Scorer, texts: list[Text], people: Scorer) -> str:
    """A row of Markdown."""
    scored = [one.value for one in scorer.score(texts)]
    rated = [one.value for one in people.score(texts)]
    pairs = [(a, b) for a, b in zip(scored, rated, strict=True) if a is not None and b is not None]
    ours, theirs = zip(*pairs, strict=True)
    rho = scorer.direction * people.direction * float(spearmanr(ours, theirs).statistic)
    name = scorer.settings().get("formula") or f"surprisal, {Path(scorer.settings()['model']).name}"
    return f"| `{name}` | {scorer.direction:+d} | {rho:.3f} | {len(pairs):,} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--column", required=True)
    parser.add_argument("--direction", choices=("up", "down"), default="up")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    documents = iter_documents(arguments.data, target_field=arguments.column, read_target=number_in)
    texts = [Text(document.id, document.text, None, document.target) for document in documents]
    tools = Tools(language_model)
    people = ColumnConfig(column=arguments.column, direction=arguments.direction).build(tools)
    scorers: list[Scorer] = [ReadabilityConfig(formula=name).build(tools) for name in FORMULAS]
    if arguments.model:
        scorers.append(SurprisalConfig(model=arguments.model).build(tools))
    print("| score | direction | Spearman with people | texts |\n|---|---|---|---|")
    for scorer in scorers:
        print(agreement(scorer, texts, people))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
