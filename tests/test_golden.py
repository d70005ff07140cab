"""A short training whose numbers are written down: a change that moves them must say why."""

from __future__ import annotations

import json

import pytest
import torch

import apportion as ap

# After 60 steps of 128 on rows of a rank-6 mixture; the tolerance allows for other processors' rounding.
GOLDEN = {
    "token_choice": {"loss": 3.24152, "fvu": 0.183994, "l0": 3.0},
    "mutual_choice": {"loss": 3.93305, "fvu": 0.240756, "l0": 2.91518},
}


def measure(tmp_path) -> dict[str, dict[str, float]]:
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, 16, generator=g), dim=1)
    active = torch.rand(6000, 40, generator=g) < 0.08
    x = (active * torch.rand(6000, 40, generator=g)) @ directions + 0.5
    source = ap.TensorSource(x)
    configs = {name: ap.recipe(name).make(16, 64, 3, 0) for name in GOLDEN}
    saes = ap.train(configs, source, tmp_path, ap.TrainConfig(n_tokens=60 * 128, batch_size=128))
    results = {}
    for name, sae in saes.items():
        last = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        measures = ap.evaluate(sae, source)
        results[name] = {"loss": last["loss"]["reconstruction"], "fvu": measures["fvu"], "l0": measures["l0"]}
    return results


def test_golden(tmp_path):
    results = measure(tmp_path)
    for name, numbers in GOLDEN.items():
        for key, value in numbers.items():
            assert results[name][key] == pytest.approx(value, rel=2e-3), f"{name} {key}"
