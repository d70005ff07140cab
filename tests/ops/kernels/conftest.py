"""Where kernels are tried: interpreted without a card, compiled on one (``-m gpu``)."""

from __future__ import annotations

import os

import pytest
import torch

from apportion.ops import kernels

FAR = 2**30 + 8  # elements from a row to the next: to the third, more than an int32 can say


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


@pytest.fixture
def far_rows(device: str) -> torch.Tensor:
    """[3, 8] bfloat16, two rows of -1 and one of 0 to 7, ``FAR`` apart in memory that nobody else touches."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 5 * FAR:
        pytest.skip("the card has too little free memory")
    rows = torch.empty(2 * FAR + 8, dtype=torch.bfloat16, device=device).as_strided((3, 8), (FAR, 1))
    rows[0], rows[1], rows[2] = -1.0, -1.0, torch.arange(8.0)
    return rows
