"""Which implementation of an op runs: Triton on CUDA, the plain torch reference elsewhere.

KEJU_KERNELS=reference or =triton forces one of them for everything; with TRITON_INTERPRET=1, set before Triton is
imported, Triton runs on the CPU as well (slowly: it is for tests).
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows: every op has its reference
    triton = tl = None

# Ampere is the first generation with bfloat16 matrix units, which these kernels count on.
MIN_CAPABILITY = (8, 0)
# What a rehearsal takes for the GPU: an H100.
REHEARSED_SHARED_MEMORY, REHEARSED_PROCESSORS = 227 * 2**10, 132

_is_rehearsed = False


def jit(function):
    """triton.jit where Triton is installed."""
    return triton.jit(function) if triton is not None else function


def choice() -> str:
    """What KEJU_KERNELS says: "triton", "reference", or "" for what suits the device. Raises ValueError for others."""
    value = os.environ.get("KEJU_KERNELS", "")
    if value not in ("", "reference", "triton"):
        raise ValueError(f'KEJU_KERNELS={value}: choose "reference" or "triton", or leave it out')
    if value == "triton" and triton is None:
        raise ValueError("KEJU_KERNELS=triton: Triton is not installed here")
    return value


def possible_choice() -> str:
    """`choice`, known before there is a tensor. Raises ValueError as well for one that no device here could take."""
    value = choice()
    if value == "triton" and not (torch.cuda.is_available() or is_interpreted() or _is_rehearsed):
        raise ValueError("KEJU_KERNELS=triton: there is no GPU here; it needs TRITON_INTERPRET=1 as well")
    return value


@contextmanager
def rehearsal() -> Iterator[None]:
    """In here ops take the route of a GPU on any device: they allocate what they would there, and launch no kernel.

    Their outputs hold nothing: it is for counting memory. Raises ValueError where Triton is not installed.
    """
    global _is_rehearsed
    if triton is None:
        raise ValueError("Triton is not installed here: what its kernels allocate cannot be rehearsed")
    before, _is_rehearsed = _is_rehearsed, True
    try:
        yield
    finally:
        _is_rehearsed = before


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether the tensor is on a GPU, or in a rehearsal taken to be."""
    return tensor.is_cuda or _is_rehearsed


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether an op on this tensor runs in Triton. Raises ValueError for a choice in KEJU_KERNELS that cannot be."""
    chosen = choice()
    if _is_rehearsed:
        return chosen != "reference" and tensor.dtype != torch.float64
    if chosen == "triton":
        if not (tensor.is_cuda or is_interpreted()):
            raise ValueError(f"KEJU_KERNELS=triton: a tensor on {tensor.device} needs TRITON_INTERPRET=1 as well")
        return True
    # Gradients in double precision are for checking things; consumer GPUs are slow at them in any case.
    return not chosen and tensor.is_cuda and tensor.dtype != torch.float64 and _is_new_enough(tensor.device)


def is_interpreted() -> bool:
    return triton is not None and bool(triton.knobs.runtime.interpret)


@functools.cache
def _is_new_enough(device: torch.device) -> bool:
    if triton is None:
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        wanted = ".".join(map(str, MIN_CAPABILITY))
        warnings.warn(
            f"{torch.cuda.get_device_name(device)} is older than compute capability {wanted}: "
            "Keju runs the plain torch references of its kernels on it",
            stacklevel=2,
        )
        return False
    return True


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Runs a kernel on the device of its first argument; nothing happens for an empty grid, or in a rehearsal."""
    if 0 not in grid and not _is_rehearsed:
        with torch.cuda.device_of(args[0]):  # no effect for CPU tensors
            kernel[grid](*args, **options)


def num_programs(tensor: torch.Tensor, per_processor: int = 1) -> int:
    """How many programs fill the device, for kernels whose programs each take a share of the rows."""
    if _is_rehearsed:
        return per_processor * REHEARSED_PROCESSORS
    if not tensor.is_cuda:
        return 3  # interpreted: few enough to be fast, and a number that divides nothing evenly
    return per_processor * torch.cuda.get_device_properties(tensor.device).multi_processor_count


def shared_memory(tensor: torch.Tensor) -> int:
    """Bytes of shared memory that one program may use; 0 where kernels are interpreted."""
    if _is_rehearsed:
        return REHEARSED_SHARED_MEMORY
    if not tensor.is_cuda:
        return 0
    return torch.cuda.get_device_properties(tensor.device).shared_memory_per_block_optin


def compute_dtype(tensor: torch.Tensor) -> Any:
    """The dtype that a kernel computes in: float32, or float64 for float64."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., size] -> [rows, size] with neighbouring elements of a row next to each other; a view where possible."""
    return along_rows(x.reshape(-1, x.shape[-1]))


def along_rows(x: torch.Tensor) -> torch.Tensor:
    """x with neighbouring elements of its last dimension next to each other; itself where they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def as_autocast(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors in the dtype that a matrix product would take them in under torch.autocast; otherwise as they are."""
    device_type = next(tensor for tensor in tensors if tensor is not None).device.type
    if not torch.is_autocast_enabled(device_type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device_type)
    return [tensor if tensor is None or not tensor.is_floating_point() else tensor.to(dtype) for tensor in tensors]


def check_floating(**tensors: torch.Tensor | None) -> None:
    """Raises ValueError unless all of them are floating-point tensors on one device; None is skipped."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, device = next((name, tensor.device) for name, tensor in present.items())
    for name, tensor in present.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} on {device}")


def check_shape(name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the tensor has this shape; None is skipped."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")


def check_targets(target: torch.Tensor, count: int, vocab_size: int, device: torch.device) -> None:
    """Raises ValueError unless target is int64 [count] on the device and within the vocabulary."""
    check_shape("target", target, (count,))
    if target.dtype != torch.int64:
        raise ValueError(f"target must be torch.int64, not {target.dtype}")
    if target.device != device:
        raise ValueError(f"target is on {target.device}, but hidden on {device}")
    if count:
        low, high = torch.stack(torch.aminmax(target)).tolist()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"target holds {low if low < 0 else high}, but the vocabulary has {vocab_size} tokens")
