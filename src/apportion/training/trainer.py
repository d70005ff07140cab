"""The loop: many SAEs on one stream, each as if it were alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..activations.scale import input_scale
from ..activations.source import Batch, Source, Stream
from ..clock import Clock
from ..device import usable_device
from ..errors import BudgetMissed, TrainingDiverged
from ..files import locked, what_is
from ..io.native import load_sae, save_sae
from ..ops.median import geometric_median
from ..sae import SAE
from ..workspace import Workspace
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .configs import RunConfig, TrainConfig
from .finish import finish
from .log import JsonLines, Sink, check_sinks, open_sink
from .missed import missed
from .plan import check_runs, claim_folder
from .step import Run, StepResult, train_step


def train(
    configs: Mapping[str, RunConfig],
    source: Source,
    out: str | Path,
    settings: TrainConfig | None = None,
    *,
    checkpoint_seconds: float = 300.0,
    sinks: Sequence[str] = (),
    progress: bool = False,
    device: str | torch.device = "cpu",
) -> dict[str, SAE]:
    """Train many SAEs on one stream of activations; each ends bit-equal to the same SAE trained alone.

    ``out/NAME/`` gets the log and, at the end, the frozen, calibrated SAE (``ap.load`` reads it);
    ``out/checkpoints`` what is needed to go on. Calling it again with the same arguments goes on after the last
    checkpoint, bit for bit, or, where everything is done, returns what was saved.

    Args:
        configs: runs by name (letters, digits, ``._-``).
        source: activations.
        out: a folder, new or of the same training.
        settings: of the stream.
        checkpoint_seconds: time between checkpoints; results do not depend on it.
        sinks: further logs, ``tensorboard`` or ``wandb``.
        progress: show a bar.
        device: where the SAEs live.

    Raises:
        InvalidConfig: a name is unfit, the device is not here, or ``out`` holds a training with other settings.
        InvalidInput: an SAE's width is not the source's, or nothing is held out to calibrate on.
        TrainingDiverged: a loss is not finite.
        StorageFailure, InvalidCheckpoint: what is in ``out`` cannot be written or read.

    Warns:
        BudgetMissed: L0 in training or of the frozen SAE is not k; with what it is, and what helps.
    """
    settings = settings or TrainConfig()
    out = Path(out)
    check_runs(configs, source, settings)
    check_sinks(sinks)
    place = usable_device(device)
    with locked(out, "training in"):
        claim_folder(out, configs, source, settings)
        if all(what_is(out / name / "sae.json") is not None for name in configs):
            saes = {name: load_sae(out / name).to(place) for name in configs}
        else:
            session = _Session(configs, source, out, settings, sinks, place)
            try:
                session.run(checkpoint_seconds, progress)
            finally:
                session.close()
            saes = session.finish()
    for name, sae in saes.items():
        for sentence in missed(name, configs[name], sae.metadata):
            warnings.warn(sentence, BudgetMissed, stacklevel=2)
    return saes


class _Session:
    """One process's share of a training: from the start, or from the last checkpoint, to the end."""

    def __init__(
        self,
        configs: Mapping[str, RunConfig],
        source: Source,
        out: Path,
        settings: TrainConfig,
        sinks: Sequence[str],
        device: torch.device,
    ) -> None:
        self.source, self.out, self.settings, self.device = source, out, settings, device
        checkpoint = latest_checkpoint(out)
        workspace = Workspace()
        self.runs = {
            name: Run(config, torch.zeros(config.sae.d_in, device=device), workspace)
            for name, config in configs.items()
        }
        self.step, self.scale, self.tallies = 0, 1.0, {name: _Tally() for name in configs}
        state = load_checkpoint(checkpoint, self.runs) if checkpoint else None
        if state is not None:
            self.step, self.scale = int(state["step"]), float(state["scale"])
            self.tallies = {name: _Tally(**state["runs"][name]["tally"]) for name in configs}
        self.stream: Stream = source.stream(
            settings.batch_size, settings.seed, state["stream"] if state is not None else None
        )
        self.logs = {
            name: JsonLines(out / name / "log.jsonl", state["runs"][name]["log_bytes"] if state else 0)
            for name in configs
        }
        self.sinks: dict[str, list[Sink]] = {
            name: [open_sink(sink, out, name, self.step) for sink in sinks] for name in configs
        }

    def run(self, checkpoint_seconds: float, progress: bool) -> None:
        """All steps that are left. The last checkpoint is that of the end."""
        n_steps, saved_at = self.settings.n_steps, time.monotonic()
        bar = tqdm(
            total=n_steps, initial=self.step, desc="train", unit="step", disable=not progress, mininterval=0.5
        )
        with bar:
            while self.step < n_steps:
                self._one_step(next(self.stream))
                bar.update()
                if time.monotonic() - saved_at >= checkpoint_seconds and self.step < n_steps:
                    self._save()
                    saved_at = time.monotonic()
        self._save()

    def _one_step(self, batch: Batch) -> None:
        x = batch.x.to(self.device)
        if self.step == 0:
            self.scale = input_scale(x)
        x = x * self.scale
        if self.step == 0:
            self._initialise(x)
        target = None if batch.target is None else batch.target.to(self.device)
        clock = Clock(self.step, self.settings.n_steps, self.step * self.settings.batch_size)
        for name, run in self.runs.items():
            started = time.perf_counter()
            result = train_step(run, x, clock, target=target)
            tally = self.tallies[name]
            tally.add(result, clock, time.perf_counter() - started)
            if self.step % self.settings.record_every == 0 or self.step == self.settings.n_steps - 1:
                self._log(name, run, result, tally)
        self.step += 1

    def _initialise(self, x: Tensor) -> None:
        median = geometric_median(x)
        for run in self.runs.values():
            run.begin(median)

    def _log(self, name: str, run: Run, result: StepResult, tally: _Tally) -> None:
        losses = {key: float(value) for key, value in result.losses.items()}
        bad = [key for key, value in losses.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise TrainingDiverged(
                f"run '{name}': loss '{bad[0]}' is {losses[bad[0]]} at step {self.step}; "
                "lower the learning rate or check the activations"
            )
        if not bool(torch.isfinite(result.grad_norm)):
            raise TrainingDiverged(
                f"run '{name}': the gradient's norm is {float(result.grad_norm)} at step {self.step}; "
                "lower the learning rate or check the activations"
            )
        residual = (result.trace.x - result.trace.x_hat).detach()
        spread = (result.trace.x - result.trace.x.mean(0)).square().sum()
        tally.fvu = float(residual.square().sum() / spread)
        record: dict[str, Any] = {
            "step": self.step,
            "tokens": (self.step + 1) * self.settings.batch_size,
            "loss": losses,
            "fvu": tally.fvu,
            "l0": result.trace.code.nnz / result.trace.code.n,
            "dead": float(run.firing.dead().float().mean()),
            "grad_norm": float(result.grad_norm),
            "lr": result.lr,
            "notes": {key: float(value.detach().float().mean()) for key, value in result.trace.notes.items()},
            "time": {"at": time.time(), "tokens_per_s": tally.tokens_per_s},
        }
        for sink in (self.logs[name], *self.sinks[name]):
            sink.write(record)

    def _save(self) -> None:
        for name, run in self.runs.items():
            if not all(bool(torch.isfinite(parameter).all()) for parameter in run.sae.parameters()):
                raise TrainingDiverged(
                    f"run '{name}': its weights are not finite before step {self.step}, and the last checkpoint "
                    "stays; lower the learning rate or check the activations, in another folder"
                )
        state = {
            "scale": self.scale,
            "stream": self.stream.state(),
            "runs": {
                name: {"log_bytes": self.logs[name].position(), "tally": vars(self.tallies[name])}
                for name in self.runs
            },
        }
        save_checkpoint(self.out, self.step, self.runs, state)

    def finish(self) -> dict[str, SAE]:
        """Freeze, calibrate and save every run."""
        saes = {}
        for name, run in self.runs.items():
            history = {
                "config": run.config.model_dump(mode="json"),
                "settings": self.settings.model_dump(mode="json"),
                "scale": self.scale,
                "steps": self.step,
                "tokens": self.step * self.settings.batch_size,
                "l0_train": self.tallies[name].l0,
                "dead": float(run.firing.dead().float().mean()),
                "fvu_train": self.tallies[name].fvu,
                "tokens_per_s": self.tallies[name].tokens_per_s,
            }
            sae = finish(run, self.source, self.scale, self.settings, history)
            save_sae(sae, self.out / name)
            saes[name] = sae
        return saes

    def close(self) -> None:
        """Let go of files and threads."""
        self.stream.close()
        for name, log in self.logs.items():
            for sink in (log, *self.sinks[name]):
                sink.close()


class _Tally:
    """Sums over steps that outlive a resume. ``l0`` is the mean over the last tenth of the run, ``fvu`` that of
    the batch last logged."""

    def __init__(
        self, spent: int = 0, rows: int = 0, tokens: int = 0, seconds: float = 0.0, fvu: float = 0.0
    ) -> None:
        self.spent, self.rows, self.tokens, self.seconds, self.fvu = spent, rows, tokens, seconds, fvu

    def add(self, result: StepResult, clock: Clock, seconds: float) -> None:
        code = result.trace.code
        self.tokens, self.seconds = self.tokens + code.n, self.seconds + seconds
        if clock.step >= clock.n_steps - max(clock.n_steps // 10, 1):
            self.spent, self.rows = self.spent + code.nnz, self.rows + code.n

    @property
    def l0(self) -> float:
        return self.spent / max(self.rows, 1)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)
