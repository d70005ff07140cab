"""What a training step costs, as a multiple of the one dense product that it cannot avoid."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..clock import Clock
from ..errors import InvalidConfig
from ..recipes import adjusted, find_recipe
from ..spans import listening
from ..training import Run, RunConfig, train_step
from ..training.optimizers import state_bytes
from .card import DTYPES, Dtype, check_device, probes, rates, work_of_step
from .timing import noisy, one_thread, products, spread, timed

PARTS = (
    *("zero_grad", "encode", "allocate", "decode", "losses", "backward"),
    *("project", "clip", "optimizer", "renormalise", "observe"),
)
_FIRST, _EARLY, _HALFWAY = Clock(step=0, n_steps=10), Clock(step=1, n_steps=100), Clock(step=50, n_steps=100)
_DENSE = ", dense"
_OLD = 1 << 40
_GB = 1e9


def bench_step(
    recipes: Sequence[str],
    *,
    d_in: int = 768,
    d_sae: int = 16_384,
    k: float = 32,
    batch: int = 2048,
    rounds: int = 15,
    parts: bool = False,
    memory: bool = False,
    aux_dead: float = 0.05,
    settings: Sequence[str] = (),
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Dtype = "float32",
    processor: bool = False,
) -> list[dict[str, Any]]:
    """Time steps of each recipe, and the product ``x @ W_enc + b_enc``, interleaved.

    Inputs are Gaussian. A step is everything: forward, backward, projection, clipping, optimiser,
    renormalisation, ``observe`` and firing counts. The first row of a recipe is without auxiliary losses; where
    it has one there is a second, ``RECIPE+LOSS``, with densities on a Zipf curve and the share ``aux_dead`` of
    the features dead.
    A rule that comes to its k by a price is put there first, by a shift of the encoder's biases; a row of its
    own, ``RECIPE, dense``, is of its first steps, when many more features fire. ``settings``
    change a recipe, as ``RECIPE.FIELD=VALUE``. ``dtype`` is that of the product, in the steps and alone.
    With ``processor`` times are the process's own seconds on one thread, which other work on the machine
    stretches less.

    Returns:
        A row per recipe: ``recipe, step_s, product_s, ratio, tokens_per_s``; ``product_spread`` and ``noisy``
        (the middle 80 % of the product's times lie more than 10 % apart); with ``parts`` the parts in seconds;
        with ``memory`` the peak beyond weights, gradients and optimiser state, as a multiple of the affinities
        and in GB (10^9 bytes), and ``optimizer_gb``, that state; on a card what ``card.rates`` says. Times are
        then the card's own.

    Raises:
        InvalidConfig: a size is not positive, ``device`` is not here or cannot give ``parts`` or ``memory``, or
            ``processor`` is asked for together with ``parts`` or a card.
    """
    check_device(device, parts=parts, memory=memory)
    if processor and (parts or device != "cpu"):
        raise InvalidConfig(
            f"processor = True with parts = {parts}, device = {device!r}: these seconds are those of whole steps "
            "on the CPU; leave the others out"
        )
    if min(rounds, batch, d_in, d_sae) < 1:
        raise InvalidConfig(
            f"rounds = {rounds}, batch = {batch}, d_in = {d_in}, d_sae = {d_sae} must be positive"
        )
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(12_345))  # no direction's own stream
    x = x.to(device)
    runs: dict[str, Run] = {}
    for name in recipes:
        config = adjusted(find_recipe(name).make(d_in, d_sae, k, 0), name, settings, recipes)
        if dtype != "float32":  # else as the recipe or the settings say
            config = config.model_copy(update={"precision": dtype})
        runs |= _runs_of(name, config, x, aux_dead)
    floors = products(x.to(DTYPES[dtype]), d_sae)
    tops = probes(x.to(DTYPES[dtype])) if device != "cpu" else {}
    clock = time.process_time if processor else time.perf_counter
    with one_thread() if processor else nullcontext():
        times = _interleaved(runs, floors | tops, x, rounds, clock)
    rows = [_row(name, times, list(floors), batch, run, x, parts, memory) for name, run in runs.items()]
    if tops:
        itemsize = DTYPES[dtype].itemsize
        most = {label: statistics.median(times[label]) for label in tops}
        for row, run in zip(rows, runs.values(), strict=True):
            entries = len(run.sae.trace(x).code.values)
            row |= rates(work_of_step(batch, d_in, d_sae, entries, itemsize), row["step_s"], most)
    return rows


def _runs_of(name: str, config: RunConfig, x: Tensor, aux_dead: float) -> dict[str, Run]:
    """The runs of one recipe that are timed, by the names of their rows."""
    runs = {name: _prepared(config, x, dead=0.0)}
    if runs[name].sae.trace(x).penalty is not None:
        runs[name + _DENSE] = _prepared(config, x, dead=0.0)
        _spend(runs[name], x, config.sae.allocator.mean_k)
    extra = [objective.build().name for objective in config.objectives if objective.auxiliary]
    if extra:
        runs["+".join([name, *extra])] = _prepared(config, x, dead=aux_dead)
    return runs


def _interleaved(
    runs: Mapping[str, Run],
    others: Mapping[str, Callable[[], Tensor]],
    x: Tensor,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Seconds of a step of every run, each after all the others, in so many rounds after two to warm up."""
    times: dict[str, list[float]] = {name: [] for name in (*others, *runs)}
    for round_number in range(rounds + 2):
        for name, run in runs.items():
            for label, other in others.items():
                times[label].append(timed(other, x.device.type, clock)[0])
            times[name].append(_one_step(run, x, _moment(name), clock))
        if round_number == 1:
            times = {name: [] for name in times}
    return times


def _row(
    name: str,
    times: dict[str, list[float]],
    floors: list[str],
    batch: int,
    run: Run,
    x: Tensor,
    parts: bool,
    memory: bool,
) -> dict[str, Any]:
    fastest = min(floors, key=lambda label: statistics.median(times[label]))
    product, step = statistics.median(times[fastest]), statistics.median(times[name])
    row: dict[str, Any] = {
        "recipe": name,
        "step_s": step,
        "product_s": product,
        "ratio": step / product,
        "tokens_per_s": batch / step,
        "product_spread": spread(times[fastest]),
    }
    row["noisy"] = noisy(row["product_spread"])
    if parts:
        row["parts"] = timed_parts(run, x, step, when=_moment(name))
    if memory and not {"+", ","} & set(name):
        peak = peak_memory(run.config, batch)
        row["peak_over_affinities"] = peak / (batch * run.config.sae.d_sae * 4)
        row["peak_gb"] = peak / _GB
        row["optimizer_gb"] = state_bytes(run.optimizer) / _GB
    return row


def _prepared(config: RunConfig, x: Tensor, dead: float) -> Run:
    """A run a step in, with a share of its features dead; auxiliary losses only where something is.

    The step brings a number with every token, so that a rule that learns from them tells tokens apart.
    """
    objectives = tuple(objective for objective in config.objectives if dead or not objective.auxiliary)
    # No feature crosses this age by itself; those that are to be dead are put beyond it before every step.
    run = Run(config.model_copy(update={"objectives": objectives, "dead_after": _OLD}), x.mean(0))
    train_step(run, x, _FIRST, target=x[:, 0])
    run.firing.age[: round(dead * config.sae.d_sae)] = _OLD
    run.firing.density.copy_(1 / torch.arange(10, config.sae.d_sae + 10).flip(0))
    run.firing.density.mul_(run.sae.k / run.firing.density.sum()).masked_fill_(run.firing.dead(), 0)
    return run


@torch.no_grad()
def _spend(run: Run, x: Tensor, k: float) -> None:
    """Shift all biases of the encoder by the number that brings L0 to ``k``."""
    low, high = -float(run.sae.survey(x).peaks().max()), 0.0
    start = run.sae.b_enc.clone()
    for _ in range(20):
        middle = (low + high) / 2
        run.sae.b_enc.copy_(start + middle)
        low, high = (middle, high) if run.sae.trace(x).code.nnz < k * len(x) else (low, middle)


def _moment(name: str) -> Clock:
    """When in its training the step of a row is; what is annealed has come as far by then."""
    return _EARLY if name.endswith(_DENSE) else _HALFWAY


def _one_step(run: Run, x: Tensor, when: Clock, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a step with the same features dead as before it, whether or not it makes them fire."""
    dead, density = run.firing.dead(), run.firing.density.clone()
    seconds, result = timed(lambda: train_step(run, x, when), x.device.type, clock)
    auxiliary = any(objective.auxiliary for objective in run.config.objectives)
    assert auxiliary == bool(dead.any()) and len(result.losses) >= len(run.objectives)
    run.firing.age.masked_fill_(dead, _OLD)
    run.firing.density.copy_(density)
    return seconds


def timed_parts(run: Run, x: Tensor, step_s: float, rounds: int = 9, when: Clock = _HALFWAY) -> dict[str, float]:
    """Seconds of each part of a step, and what lies between them as ``rest``.

    The shares are medians over steps of their own; times ``step_s`` they fit the row that they stand in.
    """
    samples: list[dict[str, float]] = []
    for _ in range(rounds):
        with listening() as spans:
            whole = _one_step(run, x, when)
        shares = {part: spans[part] / whole for part in PARTS}
        samples.append(shares | {"rest": 1 - sum(shares.values())})
    return {part: step_s * statistics.median(sample[part] for sample in samples) for part in samples[0]}


def peak_memory(config: RunConfig, batch: int) -> int:
    """Peak resident bytes of one step in a fresh process, beyond weights, gradients and optimiser state."""
    request = json.dumps({"config": config.model_dump(mode="json"), "batch": batch})
    command = [sys.executable, "-c", f"from {__name__} import _measure_peak; _measure_peak()"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=True)
    return int(done.stdout)


def _measure_peak() -> None:
    """In a fresh process: reads a config from standard input, writes the bytes to standard output."""
    request = json.loads(sys.stdin.read())
    config, batch = RunConfig.parse(request["config"], "bench"), request["batch"]
    x = torch.randn(batch, config.sae.d_in)
    run = _prepared(config, x, dead=0.0)
    train_step(run, x[:64], _HALFWAY)  # the optimiser's state, and what libraries keep for themselves
    run.workspace.clear()
    before = _status_kib("VmRSS")
    train_step(run, x, _HALFWAY)
    sys.stdout.write(str(max(_status_kib("VmHWM") - before, 0) * 1024))


def _status_kib(field: str) -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123  (Linux only, a kernel file)
        return next(int(line.split()[1]) for line in status if line.startswith(field))
