"""One optimiser step of one SAE."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..errors import InvalidConfig
from ..firing import Firing
from ..objectives import Objective
from ..sae import SAE
from ..spans import span
from ..trace import Trace
from ..workspace import Workspace
from ..world import SOLO, World
from .configs import RunConfig
from .decoder_norm import project_gradient, renormalise
from .optimizers import build_optimizer, set_lr


class Run:
    """An SAE in training, with everything that its next step depends on.

    Args:
        config: how it is trained.
        b_dec: [d_in], where its decoder bias starts.
        workspace: large buffers; runs that step one after the other may share one.
    """

    def __init__(self, config: RunConfig, b_dec: Tensor, workspace: Workspace | None = None) -> None:
        self.config = config
        self.workspace = workspace or Workspace()
        with torch.random.fork_rng(devices=[]):
            # For rules that draw their initial weights: not the stream that the directions come from below.
            # ``torch.manual_seed`` would also reseed every card.
            torch.default_generator.manual_seed((config.seed + 1) * 0x9E3779B97F4A7C15 % 2**63)
            self.sae = SAE(config.sae)
            self.rng = torch.get_rng_state()
        self.sae.initialise(b_dec, torch.Generator().manual_seed(config.seed), config.b_enc)
        self.sae.to(b_dec.device)
        self.firing = Firing(config.sae.d_sae, config.dead_after).to(b_dec.device)
        self.objectives = nn.ModuleList(objective.build() for objective in config.objectives).to(b_dec.device)
        parameters = list(self.sae.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = build_optimizer(config, parameters)

    @property
    def losses(self) -> Iterator[Objective]:
        """The objectives."""
        return (objective for objective in self.objectives if isinstance(objective, Objective))

    @torch.no_grad()
    def begin(self, b_dec: Tensor) -> None:
        """Move the decoder's bias to where the data is, and let the rule start from the dictionary as it is.

        Args:
            b_dec: [d_in] the middle of the first batch, after the SAE's transform.
        """
        self.sae.b_dec.copy_(b_dec)
        generator = torch.Generator().manual_seed(self.config.seed)
        self.sae.allocator.initialise(self.sae.dictionary(), generator)


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step came to.

    Attributes:
        trace: its forward pass; valid until the workspace is used again.
        losses: weighted terms by name, [] each.
        grad_norm: [] norm of the dictionary's gradient before clipping.
        lr: learning rate used.
    """

    trace: Trace
    losses: dict[str, Tensor]
    grad_norm: Tensor
    lr: float = field(default=0.0)


def losses_of(run: Run, trace: Trace) -> dict[str, Tensor]:
    """All weighted loss terms of a trace: the objectives' and the rule's own. ``InvalidConfig`` if none."""
    if trace.penalty is not None and not any(objective.prices for objective in run.config.objectives):
        raise InvalidConfig(
            "the rule pays for the features that fire and no objective sets the price; add 'sparsity' to the "
            "objectives and, if it is your own rule, `penalised: ClassVar[bool] = True` to its config"
        )
    dictionary = run.sae.dictionary(accumulate=True)
    named = [(one.name, one(trace, dictionary, run.firing)) for one in run.losses]
    terms: dict[str, Tensor] = {}
    for name, term in (*named, *run.sae.allocator.terms(trace, dictionary).items()):
        if name in terms:
            raise InvalidConfig(f"two losses are called {name!r}; keep one of them or give one another name")
        if term is not None:
            terms[name] = term
    if not terms:
        raise InvalidConfig("no loss applies to this step; add one that always does, such as 'reconstruction'")
    return terms


def train_step(
    run: Run, x: Tensor, clock: Clock, *, target: Tensor | None = None, world: World = SOLO
) -> StepResult:
    """Forward, backward, projection, clipping, optimiser, renormalisation, and what the rule and counters learn.

    Args:
        run: changed in place.
        x: [n, d_in], scaled.
        clock: time of this step.
        target: [n], the number that came with each token.
    """
    with _own_randomness(run):
        with span("zero_grad"):
            run.optimizer.zero_grad(set_to_none=False)  # buffers are added into; fresh ones cost page faults
        with _precision(run, x):
            trace = run.sae.trace(
                x,
                clock,
                target=target,
                world=world,
                workspace=run.workspace,
                accumulate=True,
                encoder=run.config.encoder,
            )
        with span("losses"):
            losses = losses_of(run, trace)
        with span("backward"):
            sum(losses.values(), torch.zeros((), device=x.device)).backward()
        if run.sae.allocator.revisits(clock):
            with span("observe"):
                trace.pre.hold()
        lr = run.config.lr(clock)
        grad_norm = _update(run, lr)
        with span("observe"):
            run.firing.update(trace.code, world)
            run.sae.allocator.observe(trace, run.sae.dictionary(), run.firing, world)
            for objective in run.losses:
                objective.observe(trace, world)
    return StepResult(trace, {name: term.detach() for name, term in losses.items()}, grad_norm, lr)


def _update(run: Run, lr: float) -> Tensor:
    """Move the parameters along their gradients; returns the norm of the dictionary's before clipping."""
    with span("project"):
        project_gradient(run.sae.W_dec)
    with span("clip"):
        # Apart, for the gradients of a rule's own parameters are in other units: they would drown the
        # dictionary's, or be drowned.
        grad_norm = torch.nn.utils.clip_grad_norm_(run.sae.dictionary().parameters(), run.config.clip)
        if own := list(run.sae.allocator.parameters()):
            torch.nn.utils.clip_grad_norm_(own, run.config.clip)
    set_lr(run.optimizer, lr)
    with span("optimizer"):
        run.optimizer.step()
    with span("renormalise"):
        renormalise(run.sae.W_dec)
    return grad_norm


@contextlib.contextmanager
def _own_randomness(run: Run) -> Iterator[None]:
    """The run's own random state in place of the process's, so that neither sees the other."""
    outside = torch.get_rng_state()
    torch.set_rng_state(run.rng)
    try:
        yield
    finally:
        run.rng = torch.get_rng_state()
        torch.set_rng_state(outside)


def _precision(run: Run, x: Tensor) -> contextlib.AbstractContextManager[None]:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=run.config.precision == "bf16")
