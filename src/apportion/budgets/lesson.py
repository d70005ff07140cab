"""How a probe is taught in training: closed form first, then frozen, then jointly, each a schedule."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..clock import Clock
from ..config import Config, Open
from ..errors import InvalidInput
from ..ops.ridge import choose_ridge, products
from ..schedules import Jump, Schedule
from ..trace import Trace
from ..world import SOLO, World

_RECENT = 3
"""Steps over which the fall of the probe's loss decides about its leash."""


class LessonConfig(Config):
    """What a probe learns from targets that come with the tokens, and when.

    Attributes:
        gather: weight of a step's tokens in the ridge regression, which is solved at the first step of weight 0
            or at the end of the run.
        joint: w(t) of ``w (error + penalty / 2 |weight|² + leash (|weight - w0| + |bias - b0|))``, w0 and b0
            being the solution; 0 leaves the probe frozen.
        penalties: λ of the ridge regression, chosen by cross-validation. Published: up to 1000; tokens of one
            text are not independent, and want more.
        folds: of the cross-validation. No text is in two.
        penalty: of the joint loss; None for 2 λ / tokens, so that its minimum is the ridge regression's.
        leash: of the joint loss at first. Times 0.8 after a step at which the probe's loss has fallen by more
            than 5 % in three steps, else times 1.2, within ``leash_bounds``.
    """

    gather: Open[Schedule] = Jump(start=1.0, end=0.0, at=0.1)
    joint: Open[Schedule] = Jump(start=0.0, end=0.05, at=0.9)
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    folds: int = Field(default=5, ge=2)
    penalty: float | None = Field(default=None, ge=0)
    leash: float = Field(default=0.2, ge=0)
    leash_bounds: tuple[float, float] = (0.01, 0.5)

    @model_validator(mode="after")
    def _usable(self) -> LessonConfig:
        if not self.penalties or min(self.penalties) <= 0 or list(self.penalties) != sorted(self.penalties):
            raise ValueError(f"penalties = {self.penalties} must be positive and ascend; give 0.01,1,100, say")
        if not 0 < self.leash_bounds[0] <= self.leash_bounds[1]:
            raise ValueError(f"leash_bounds = {self.leash_bounds} must be two positive numbers that ascend")
        return self


class Lesson(nn.Module):
    """The state of a probe in training, besides the solution itself.

    Parameters:
        moved: [d_in] float32, how far the weight is from the solution; the joint stage alone moves it.
        moved_bias: [] float32, likewise for the prediction at the mean activation.

    Buffers:
        sums: [folds, d_in + 2, d_in + 2] float64, of the ridge regression (see ``ops.ridge``).
        mean: [d_in] float32, of the activations gathered.
        taught: [] int64, whether there is a solution.
        penalty, leash: [] float32, of the joint loss.
        recent: [3] float32, the probe's last losses, the oldest first.
    """

    sums: Tensor
    mean: Tensor
    taught: Tensor
    penalty: Tensor
    leash: Tensor
    recent: Tensor

    def __init__(self, config: LessonConfig, d_in: int) -> None:
        super().__init__()
        self.config = config
        self.moved = nn.Parameter(torch.zeros(d_in, dtype=torch.float32))
        self.moved_bias = nn.Parameter(torch.zeros((), dtype=torch.float32))
        wide = d_in + 2
        self.register_buffer("sums", torch.zeros(config.folds, wide, wide, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(d_in, dtype=torch.float32))
        self.register_buffer("taught", torch.zeros((), dtype=torch.int64))
        self.register_buffer("penalty", torch.tensor(config.penalty or 0.0, dtype=torch.float32))
        self.register_buffer("leash", torch.tensor(config.leash, dtype=torch.float32))
        self.register_buffer("recent", torch.full((_RECENT,), torch.inf, dtype=torch.float32))

    def corrected(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The solution ``weight [d_in]``, ``bias []`` moved by what the joint stage learned, in float64."""
        moved = self.moved.double()
        # At the mean activation, so that a step of the weight alone leaves the mean prediction where it is.
        return weight.double() + moved, bias.double() + self.moved_bias.double() - self.mean.double() @ moved

    def loss(self, trace: Trace, weight: Tensor, bias: Tensor) -> Tensor | None:
        """The weighted joint loss of the probe; None where there is nothing to learn from.

        Args:
            weight, bias: of the probe as it is, ``corrected``.
        """
        share = self.config.joint(trace.clock)
        error = probe_error(trace, weight, bias) if share else None
        if error is None:
            return None
        held = torch.linalg.vector_norm(self.moved) + self.moved_bias.abs()
        loss: Tensor = share * (error + self.penalty / 2 * weight.square().sum() + self.leash * held)
        return loss.to(trace.x.dtype)

    @torch.no_grad()
    def gather(self, trace: Trace, world: World) -> tuple[Tensor, Tensor] | None:
        """Take in a step's tokens; weight [d_in] and bias [] of the solution, if this was the last of them.

        Raises:
            InvalidInput: it was the last, and no targets came or all were the same.
        """
        share = self.config.gather(trace.clock)
        if trace.target is None or share <= 0:
            return None
        known = torch.isfinite(trace.target)
        new = products(trace.x[known], trace.target[known], self.config.folds)
        self.sums.add_(world.sum(share * new))
        now = trace.clock
        after = Clock(now.step + 1, now.n_steps, now.tokens + len(trace.x))
        if self.config.gather(after) > 0 and after.progress < 1:
            return None
        return self._solve()

    def _solve(self) -> tuple[Tensor, Tensor]:
        total = self.sums.sum(0)
        n, first, second = total[-2:, -2:].flatten()[[0, 1, 3]].tolist()  # sums of 1, y and y² over the tokens
        if n * second - first**2 <= 1e-12 * n * second:
            what = f"all {n:,.0f} had the target {first / n:g}" if n else "none had a target"
            raise InvalidInput(
                f"of the tokens gathered for the probe, {what}, so it cannot be fitted; give scores that differ "
                "between texts, or gather for longer"
            )
        fit = choose_ridge(self.sums, self.config.penalties)
        self.mean.copy_(total[:-2, -2] / total[-2, -2])
        if self.config.penalty is None:
            self.penalty.fill_(2 * fit.penalty / n)
        self.taught.fill_(1)
        return fit.weight, fit.bias

    @torch.no_grad()
    def adapt(self, trace: Trace, weight: Tensor, bias: Tensor, world: World = SOLO) -> None:
        """Lengthen or shorten the leash by how the probe's loss has fallen, once per joint step.

        The loss is that of all processes, whose probes would else be held on leashes of their own.
        """
        if trace.target is None or not self.config.joint(trace.clock):
            return
        n = torch.isfinite(trace.target).sum().double()
        own = probe_error(trace, weight, bias)
        total, n = world.sum(torch.stack([n if own is None else own * n, n]))
        if not n:
            return
        error = total / n
        oldest, low, high = self.recent[0].clone(), *self.config.leash_bounds
        if torch.isfinite(oldest):
            self.leash.mul_(0.8 if error < 0.95 * oldest else 1.2).clamp_(low, high)
        self.recent.copy_(torch.cat([self.recent[1:], error.float()[None]]))

    @torch.no_grad()
    def fold(self, scale: float) -> None:
        """See ``Budget.fold``."""
        self.moved.mul_(scale)
        self.mean.div_(scale)
        units = torch.full_like(self.sums[0, 0], 1 / scale)
        units[-2:] = 1
        self.sums.mul_(units[:, None] * units)


def probe_error(trace: Trace, weight: Tensor, bias: Tensor) -> Tensor | None:
    """[] the mean squared error of the prediction on the tokens that have a target; None if none has."""
    if trace.target is None:
        return None
    known = torch.isfinite(trace.target)
    if not bool(known.any()):
        return None
    predicted = trace.x[known].double() @ weight + bias
    return (predicted - trace.target[known]).square().mean()


class Recent(nn.Module):
    """The scores of the last tokens, and when they ask for a new offset.

    Buffers:
        scores: [131,072] float32, a ring.
        written, solved: [] int64, scores taken in, and those there were when the offset was last solved.
    """

    SIZE = 131_072
    scores: Tensor
    written: Tensor
    solved: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scores", torch.zeros(self.SIZE, dtype=torch.float32))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("solved", torch.zeros((), dtype=torch.int64))

    def add(self, scores: Tensor) -> Tensor | None:
        """Take in ``scores [n]``. Returns all there are, [m], when a half of them or more are new."""
        scores = scores[-self.SIZE :].float()
        written = int(self.written)
        place = torch.arange(written, written + len(scores), device=self.scores.device) % self.SIZE
        self.scores[place] = scores
        self.written += len(scores)
        held = min(written + len(scores), self.SIZE)
        if 2 * (written + len(scores) - int(self.solved)) < held:
            return None
        self.solved.copy_(self.written)
        return self.scores[:held]

    def clear(self) -> None:
        """Forget all, because the probe is another."""
        self.written.zero_()
        self.solved.zero_()
