"""The contract of a recipe, and the list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

from ..allocators import AllocatorConfig
from ..config import Kind
from ..errors import UnknownName, nearest
from ..objectives import ReconstructionConfig, SparsityConfig
from ..sae import SAEConfig
from ..training import RunConfig, TrainConfig

Make = Callable[[int, int, float, int], RunConfig]
"""(d_in, d_sae, k, seed) to the full config of a run."""


@dataclass(frozen=True)
class Published:
    """The settings of a paper's own experiment.

    Attributes:
        make: the run.
        train: its stream.
        d_sae: its number of features.
        notes: where text and code of the paper differ, or where the package does; said when it is used.
        k: its mean number of features per token, if it has one.
    """

    make: Make
    train: TrainConfig
    d_sae: int
    notes: str = ""
    k: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A named way to train.

    Attributes:
        name: as on the command line.
        make: (d_in, d_sae, k, seed) to the full config.
        source: paper.
        aliases: other names of the same.
        papers: published settings by the name of the experiment (``apportion train --paper NAME``).
    """

    name: str
    make: Make
    source: str
    aliases: tuple[str, ...] = ()
    papers: Mapping[str, Published] = field(default_factory=dict)

    def published(self, experiment: str) -> Published:
        """The settings of one experiment. Raises ``UnknownName`` naming those there are."""
        if experiment not in self.papers:
            known = ", ".join(sorted(self.papers)) or "none"
            raise UnknownName(
                f"recipe {self.name!r} has no published settings called {experiment!r}, only: {known}; "
                "choose one of them or leave --paper out"
            )
        return self.papers[experiment]


_RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Make a recipe known by its name and aliases."""
    for name in (recipe.name, *recipe.aliases):
        _RECIPES[name] = recipe
    return recipe


def recipe_names() -> list[str]:
    """Names of all recipes, aliases left out, sorted."""
    return sorted({recipe.name for recipe in _RECIPES.values()})


def find_recipe(name: str) -> Recipe:
    """The recipe of that name or, for any registered rule without one, the rule with its defaults.

    Raises:
        UnknownName: neither is known.
    """
    if name in _RECIPES:
        return _RECIPES[name]
    rules = {kind for kind, config in AllocatorConfig.members.items() if not _inference_only(config)}
    if name in rules:
        return Recipe(name, lambda d_in, d_sae, k, seed: plain(name, d_in, d_sae, k, seed), "no paper")
    known = [*_RECIPES, *rules]
    raise UnknownName(
        f"unknown recipe {name!r}; nearest: {nearest(name, known)}. "
        "A rule from outside the package is known by its kind once its file is given with --plugin"
    )


def _inference_only(config: type[Kind]) -> bool:
    return issubclass(config, AllocatorConfig) and config.inference_only


def priced(kind: str, d_in: int, d_sae: int, k: float, seed: int, **settings: object) -> RunConfig:
    """The run of a rule that is held to k by a price, with some of its settings."""
    where = f"recipe {kind}"
    allocator = AllocatorConfig.lookup(kind).parse({"k": k, **settings}, where)
    sae = SAEConfig.parse({"d_in": d_in, "d_sae": d_sae, "allocator": allocator}, where)
    run = RunConfig.parse({"sae": sae, "objectives": (ReconstructionConfig(),), "seed": seed}, where)
    return with_price(run)


def begun_sparse(run: RunConfig) -> RunConfig:
    """The run of a rule in which everything above zero fires, from where its reconstruction is near the input.

    Random unit directions of which a share p fires add up to x_hat = p d_sae / d_in x. Without a bias half of
    them do, x_hat is many times x, and what the first steps do about that leaves features dead. So as many fire
    at the start as there are dimensions. A bias that the run has already stays.
    """
    share = run.sae.d_in / run.sae.d_sae
    if share >= 0.5 or run.b_enc:
        return run
    return run.model_copy(update={"b_enc": NormalDist().inv_cdf(share)})


def plain(kind: str, d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """The run of a rule with everything but k at its default."""
    head = AllocatorConfig.lookup(kind)
    assert issubclass(head, AllocatorConfig)
    where = f"recipe {kind}"
    sae = SAEConfig.parse({"d_in": d_in, "d_sae": d_sae, "allocator": head.for_k(k)}, where)
    return with_price(RunConfig.parse({"sae": sae, "seed": seed}, where))


def with_price(run: RunConfig) -> RunConfig:
    """The run, ``begun_sparse`` and with a price for its rule to pay, if it needs one and nothing sets it yet."""
    if not run.sae.allocator.penalised or any(objective.prices for objective in run.objectives):
        return run
    return begun_sparse(run.model_copy(update={"objectives": (*run.objectives, SparsityConfig())}))
