"""Where kernels are tried: interpreted without a card, compiled on one (``-m gpu``)."""

from __future__ import annotations

import os

import pytest
import torch

from apportion.ops import kernels


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    """A device on which every operation goes through the kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no card")
    if request.param == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("kernels are compiled here; TRITON_INTERPRET=1 interprets them")
        monkeypatch.setattr(kernels, "on_card", lambda t: True)
    return request.param
