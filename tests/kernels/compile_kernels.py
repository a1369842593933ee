"""Compiles every kernel, at the sizes of real models, for a GPU that need not be there.

    python tests/kernels/compile_kernels.py 90 232448

The arguments are a compute capability and the shared memory of one program in bytes. What the public functions would
launch is compiled down to machine code instead; JSON lines on stdout: {"kernel", "shared", "registers", "stack"}.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
os.environ["KEJU_KERNELS"] = "triton"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CAPABILITY, SHARED_MEMORY = int(sys.argv[1]), int(sys.argv[2])


class AbsentDriver:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


driver.set_active(AbsentDriver())

from keju.kernels import (  # noqa: E402
    column_mask_attention,
    dispatch,
    gae,
    gelu,
    glu,
    logit_chunks,
    lora,
    nf4,
    products,
    rotary,
    row_norm,
)
from keju.kernels.column_mask import ColumnMask  # noqa: E402
from keju.kernels.layer_norm import layer_norm  # noqa: E402
from keju.kernels.linear_cross_entropy import linear_cross_entropy  # noqa: E402
from keju.kernels.linear_logprob import linear_logprob  # noqa: E402
from keju.kernels.lora import LoraLinear, lora_linear  # noqa: E402
from keju.kernels.rms_norm import rms_norm  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_only(kernel, grid, *args, **options):
    compiled = kernel.warmup(*args, grid=grid, **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    record = {
        "kernel": f"{kernel.fn.__module__.removeprefix('keju.kernels.')}.{kernel.fn.__name__}",
        "dtype": str(next(arg.dtype for arg in args if isinstance(arg, torch.Tensor))).removeprefix("torch."),
        "warps": compiled.metadata.num_warps,
        "shared": compiled.metadata.shared,
        "registers": registers,
        "stack": stack,
        "size": options.get("D") or options.get("SIZE") or options.get("BLOCK") or 0,
    }
    print(json.dumps(record), flush=True)


for module in (column_mask_attention, gae, gelu, glu, logit_chunks, lora, nf4, rotary, row_norm):
    module.launch = compile_only
dispatch.is_interpreted = lambda: True  # CPU tensors are welcome
products.is_interpreted = lambda: False  # but products are compiled as they are on a GPU
column_mask_attention.shared_memory = lambda tensor: SHARED_MEMORY


def zeros(*shape, dtype):
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def backward(outputs):
    sum(output.float().sum() for output in outputs if output is not None).backward()


def norms(dtype):
    for size in (128, 4096, 16384):
        x, weight = zeros(8, size, dtype=dtype), zeros(size, dtype=dtype)
        backward(rms_norm(x, weight, residual=x, casting="llama"))
        backward(layer_norm(x, weight, weight, residual=x))


def elementwise(dtype):
    for heads, kv_heads, head_dim, group in ((32, 8, 128, 64), (32, 2, 128, 1), (32, 32, 80, 20)):
        query, key = zeros(1, heads, 8, head_dim, dtype=dtype), zeros(1, kv_heads, 8, head_dim, dtype=dtype)
        table = torch.zeros(1, 8, head_dim // (4 if group == 1 else 2), dtype=dtype)
        backward(rotary.rotary(query, key, table, table, group=group))
    for form in ("silu", "exact", "tanh", "quick"):
        backward([glu.glu(zeros(4, 8192, dtype=dtype), form=form)])
    backward([gelu.gelu(zeros(4, 8192, dtype=dtype), "quick")])
    gae.gae(torch.zeros(4000, dtype=dtype), torch.zeros(4000, dtype=dtype), torch.tensor([1000, 3000]))


def heads_of_models(dtype):
    hidden, weight, target = zeros(2, 64, dtype=dtype), zeros(8192, 64, dtype=dtype), torch.tensor([0, 1])
    backward(linear_logprob(hidden, weight, target, softcap=30.0, with_entropy=True))
    backward([linear_cross_entropy(hidden, weight, target, label_smoothing=0.1, z_loss=0.1)])


def attention(dtype):
    index = torch.arange(256)
    mask = ColumnMask(index, torch.full((256,), 256))
    for head_dim in (32, 64, 80, 128, 256):
        query, key = zeros(1, 4, 256, head_dim, dtype=dtype), zeros(1, 2, 256, head_dim, dtype=dtype)
        alibi = (torch.ones(4), index) if head_dim in (80, 128) else None
        backward([column_mask_attention.column_mask_attention(query, key, key, mask, alibi=alibi)])


def quantised(dtype):
    weight = nf4.quantize_nf4(torch.zeros(256, 128, dtype=dtype))
    nf4.dequantize_nf4(weight)
    for rows in (4, 256):
        a, b = zeros(16, 128, dtype=dtype), zeros(256, 16, dtype=dtype)
        backward(lora_linear(zeros(rows, 128, dtype=dtype), LoraLinear(weight, a, b, 1.0)))


for dtype in (torch.bfloat16, torch.float32):
    for compile_some in (norms, elementwise, heads_of_models, attention, quantised):
        compile_some(dtype)
