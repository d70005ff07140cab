"""Every kernel compiles for a card, without one: what the interpreter accepts the compiler may refuse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

PROGRAM = """
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from apportion.ops.kernels import largest, ragged, soft

def compiled(kernel, signature, **constants):
    names = [name for name in kernel.arg_names if name not in constants]
    types = dict(zip(names, signature.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    assert made.asm["cubin"]

for dtype in ("fp32", "bf16"):
    for add in (False, True):
        compiled(ragged._gather_sum, f"*{dtype} *i64 *i64 *fp32 *{dtype} i32 i64 i64",
                 ADD=add, SUM=tl.float32, ENTRIES=8, BLOCK=512)
    compiled(ragged._gather_dot, f"*fp32 *{dtype} *i64 *{dtype} *i64 i64 i32 i64 i64",
             SUM=tl.float32, ENTRIES=8, BLOCK=512)
    compiled(largest._row_floors, f"*fp32 *{dtype} *i64 i32 i64", GROUPS=1024, TOP=31)
    compiled(largest._count_above, f"*i64 *{dtype} *fp32 i32 i64 i64 i32", BLOCK=2048)
    compiled(largest._list_above, f"*i64 *i64 *i64 *{dtype} *fp32 i32 i64 i64 i32", BLOCK=2048)
compiled(largest._keep_largest, "*i1 *fp32 *i64 *i64", INTEGER=tl.int32, TOP=31, BLOCK=256)
compiled(largest._keep_largest, "*i1 *fp64 *i64 *i64", INTEGER=tl.int64, TOP=63, BLOCK=256)
for dtype, order in (("fp32", soft._ORDERS[torch.float32]), ("fp64", soft._ORDERS[torch.float64])):
    for flag in (False, True):
        compiled(soft._row_places, f"*fp64 *{dtype} *fp64 *{dtype} i32 i32 i64", RELU=flag, MOMENT=flag,
                 GROUPS=1024, HALVINGS=24, BLOCK=1024, **order)
    compiled(soft._weigh, f"*{dtype} *{dtype} *i64" + " *fp64" * 3, FLOAT=order["FLOAT"], BLOCK=256)
    compiled(soft._weigh_back, f"*{dtype} *fp64 *fp64 *{dtype} *{dtype} *i64" + " *fp64" * 5,
             FLOAT=order["FLOAT"], BLOCK=256)
"""


@pytest.mark.slow
def test_kernels_compile_for_a_card_that_is_not_here(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
