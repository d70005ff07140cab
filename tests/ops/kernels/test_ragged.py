"""Decoder, encoder's sparse gradients and nested errors by kernels, against the dense formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apportion.code import Code
from apportion.ops import spmm
from apportion.ops.decode import decode, decode_reference
from apportion.ops.encode_at import encode_at, encode_at_reference
from apportion.ops.nested_error import nested_error, nested_error_reference
from apportion.ops.spmm import add_spmm, pair_dots

from ..test_kernels import CASES as SMALL

pytest.importorskip("triton", reason="Triton is not installed")
from apportion.ops.kernels import ragged
from apportion.ops.kernels.ragged import add_gathered, dots, gathered

CASES = SMALL | {"more than a block of columns, of entries": (3, 600, 24, 0.6)}


class Case:
    """Parameters, inputs and pairs; leaves are on ``device``."""

    def __init__(self, name: str, device: str, dtype: torch.dtype = torch.float64) -> None:
        n, d_in, d_sae, density = CASES[name]
        self.generator = torch.Generator().manual_seed(n)
        self.device, self.dtype, self.n, self.d_sae = device, dtype, n, d_sae
        mask = torch.rand(n, d_sae, generator=self.generator) < density
        self.rows, self.features = mask.to(device).nonzero(as_tuple=True)
        self.x, self.weight, self.W_dec = (self.draw(m, d_in) for m in (n, d_sae, d_sae))
        self.b_enc, self.b_dec, self.values = (self.draw(m) for m in (d_sae, d_in, len(self.rows)))

    def draw(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype).requires_grad_()

    def code(self) -> Code:
        return Code.from_pairs(self.rows, self.features, self.values, self.n, self.d_sae)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_decode_equals_dense(name, device):
    case = Case(name, device)
    out = decode(case.code(), case.W_dec, case.b_dec)
    want = decode_reference(case.code().to_dense(), case.W_dec, case.b_dec)
    leaves = [case.values, case.W_dec, case.b_dec]
    assert_same([out], [want])
    assert_same(gradients(out.sin().sum(), leaves), gradients(want.sin().sum(), leaves))


@pytest.mark.parametrize("given_values", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_encode_at_equals_dense(name, given_values, device):
    case = Case(name, device)
    leaves = [case.x, case.weight, case.b_enc, case.b_dec]
    want = encode_at_reference(*leaves, case.rows, case.features)
    got = encode_at(*leaves, case.rows, case.features, values=want.detach() if given_values else None)
    assert_same([got], [want])
    assert_same(gradients(got.sin().sum(), leaves), gradients(want.sin().sum(), leaves))


def test_encode_at_takes_repeated_pairs_in_any_order(device):
    case = Case("odd sizes", device)
    rows = torch.tensor([3, 0, 3, 3, 6, 0], device=device)
    features = torch.tensor([30, 2, 30, 1, 0, 2], device=device)
    leaves = [case.x, case.weight, case.b_enc, case.b_dec]
    got, want = encode_at(*leaves, rows, features), encode_at_reference(*leaves, rows, features)
    assert_same([got], [want])
    assert_same(gradients(got.sin().sum(), leaves), gradients(want.sin().sum(), leaves))


@pytest.mark.parametrize("name", ["odd sizes", "some rows empty"])
def test_nested_error_equals_dense(name, device):
    case = Case(name, device)
    ends = [2, case.d_sae // 2, case.d_sae]
    leaves = [case.x, case.values, case.W_dec, case.b_dec]
    got = nested_error(case.x, case.code(), case.W_dec, case.b_dec, torch.tensor(ends, device=device))
    want = nested_error_reference(case.x, case.code().to_dense(), case.W_dec, case.b_dec, ends)
    assert_same([got], [want])
    assert_same(gradients(got.sqrt(), leaves), gradients(want.sqrt(), leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_narrow_types_are_wide(dtype, device):
    case = Case("more than a block of columns, of entries", device, dtype)
    out = decode(case.code(), case.W_dec, None)
    cotangent = case.draw(*out.shape).detach()
    got = [out, *torch.autograd.grad(out, [case.values, case.W_dec], cotangent)]
    z, W_dec = case.code().to_dense().double(), case.W_dec.double()
    d_z = cotangent.double() @ W_dec.T
    want = [z @ W_dec, d_z[case.rows, case.features], z.T @ cotangent.double()]
    eps = torch.finfo(dtype).eps
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        # Rounded once, at the end: the error does not grow with the number of terms.
        torch.testing.assert_close(g.double(), w, rtol=eps, atol=2e-5)


def test_gradients_are_added_into_a_buffer_and_rows_without_entries_left_alone(device):
    case = Case("some rows empty", device)
    buffer = case.draw(*case.W_dec.shape).detach()
    absent = torch.ones(case.d_sae, dtype=torch.bool, device=device)
    absent[case.features] = False
    before = buffer.clone()
    out = decode(case.code(), case.W_dec, case.b_dec, buffer)
    want = decode_reference(case.code().to_dense(), case.W_dec, case.b_dec)
    (expected,) = torch.autograd.grad(want.sin().sum(), [case.W_dec])
    out.sin().sum().backward()
    assert case.W_dec.grad is None and absent.any()
    torch.testing.assert_close(buffer, before + expected)
    assert torch.equal(buffer[absent], before[absent])


def test_rows_may_lie_further_apart_than_an_int32_can_say(device):
    far = 2**30 + 8  # elements to the next row; memory that nobody touches is never there
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 5 * far:
        pytest.skip("the card has too little free memory")
    apart = torch.empty(2 * far + 8, dtype=torch.bfloat16, device=device).as_strided((3, 8), (far, 1))
    apart[0], apart[2] = 1.0, torch.arange(8.0)
    two, values = torch.tensor([2], device=device), torch.tensor([3.0], device=device)
    sums = gathered(torch.tensor([0, 1], device=device), two, values, apart)
    assert sums.tolist() == [[0, 3, 6, 9, 12, 15, 18, 21]]
    assert dots(apart, two, apart, two).tolist() == [140]
    add_gathered(apart, torch.tensor([0, 0, 0, 1], device=device), two, values, apart)
    assert apart[2].tolist() == [0, 4, 8, 12, 16, 20, 24, 28] and apart[0].tolist() == [1] * 8


def test_the_same_entries_give_the_same_bits(device):
    case = Case("everything chosen", device, torch.float32)
    twice = [
        torch.autograd.grad(decode(case.code(), case.W_dec, None).sin().sum(), [case.values, case.W_dec])
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


def test_the_kernels_are_what_is_tested(device, monkeypatch):
    called = []
    for name in ("add_gathered", "dots"):
        monkeypatch.setattr(ragged, name, lambda *_, name=name: called.append(name))
    case = Case("odd sizes", device)
    gathered_sum, offsets = torch.zeros(case.n, case.x.shape[1], device=device), case.code().offsets
    monkeypatch.setattr(ragged, "gathered", lambda *_: called.append("gathered") or gathered_sum)
    spmm.spmm(offsets, case.features, case.values.detach(), case.W_dec.detach())
    add_spmm(gathered_sum, offsets, case.features, case.values, case.W_dec)
    pair_dots(case.x, case.rows, case.W_dec, case.features)
    assert called == ["gathered", "add_gathered", "dots"]
