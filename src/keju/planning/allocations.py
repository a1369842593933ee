"""What a computation allocates, storage by storage, when its tensors have no memory.

Weights and activations are fake tensors of torch (shapes, dtypes and storages without bytes); index tensors are real,
so that masks, packs and pieces are those of a run. A dispatch mode sees every storage come and go.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

PARAMETERS, FROZEN, GRADIENTS, OPTIMIZER = "parameters", "frozen models", "gradients", "optimizer state"
ACTIVATIONS, LOGITS, CACHE = "activations", "logits and loss", "KV cache"
KINDS = (PARAMETERS, FROZEN, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, CACHE)
# What these modules allocate; of the losses that is pieces of the logits, their gradients, and what is kept between the
# passes. All else is activations, until somebody marks it.
MAKERS = {
    "keju.kernels.linear_logprob": LOGITS,
    "keju.kernels.linear_cross_entropy": LOGITS,
    "keju.kernels.logit_chunks": LOGITS,
    "transformers.cache_utils": CACHE,
}
FRAMES = 8  # from an allocation up to the function that asked for it


class Moment(NamedTuple):
    """What is alive after one allocation. phase: what the computation is doing; sizes: bytes, in the order of KINDS."""

    phase: str
    sizes: tuple[int, ...]


class Allocations(TorchDispatchMode):
    """Records a Moment whenever memory is taken; within `with allocations:` floating-point factories make fake tensors.

    Numbers that the host asks of fake tensors (`item`) are 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.moments: list[Moment] = []
        self.phase = ""
        self._kinds: dict[int, tuple[int, str]] = {}  # storage -> bytes and kind
        self._alive = dict.fromkeys(KINDS, 0)
        self._watched: dict[int, weakref.ref] = {}

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return bool(1) if args[0].dtype == torch.bool else 1 if not args[0].is_floating_point() else 1.0
        tensors = list(_tensors((args, kwargs)))
        if not tensors and _makes_floats(kwargs):
            with self.fake:
                out = func(*args, **kwargs)
        else:
            if any(isinstance(tensor, FakeTensor) for tensor in tensors):
                args = tuple(map(_positions, args)) if func is torch.ops.aten.index.Tensor else args
            out = func(*args, **kwargs)
        self._watch(_tensors(out))
        return out

    def mark(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """These are of this kind from now on; those that nobody has seen yet are counted from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._kinds:
                self._take(storage, kind)
            else:
                size, former = self._kinds[storage._cdata]
                self._kinds[storage._cdata] = size, kind
                self._alive[former] -= size
                self._alive[kind] += size
        self._record()

    def mark_gradients(self, module: torch.nn.Module) -> None:
        """Gradients of the module's parameters are marked as such when they are complete."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda leaf: self.mark([leaf.grad], GRADIENTS))

    def _watch(self, tensors: Iterable[torch.Tensor]) -> None:
        taken = False
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._kinds:
                self._take(storage, _kind())
                taken = True
        if taken:
            self._record()

    def _take(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._kinds[key] = size, kind
        self._alive[kind] += size
        self._watched[key] = weakref.ref(storage, lambda _: self._free(key))

    def _free(self, key: int) -> None:
        size, kind = self._kinds.pop(key)
        self._alive[kind] -= size
        del self._watched[key]

    def _record(self) -> None:
        if self.phase:
            self.moments.append(Moment(self.phase, tuple(self._alive[kind] for kind in KINDS)))


@contextmanager
def unmoved() -> Iterator[None]:
    """Modules of fake weights stay where they are, and copies of them are fake.

    Such weights are in no memory: torch cannot exchange them for moved ones, and copying their storages writes to where
    nothing is.
    """
    to, deepcopy = torch.nn.Module.to, FakeTensor.__deepcopy__
    torch.nn.Module.to = lambda module, *_, **__: module
    FakeTensor.__deepcopy__ = _copied
    try:
        yield
    finally:
        torch.nn.Module.to, FakeTensor.__deepcopy__ = to, deepcopy


def _copied(tensor: FakeTensor, memo: dict) -> torch.Tensor:
    copied = torch.empty_like(tensor.detach())
    if isinstance(tensor, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
    memo[id(tensor)] = copied
    return copied


def _tensors(tree) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _makes_floats(kwargs: dict) -> bool:
    return (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point


def _positions(argument):
    """Real boolean masks among the indices as positions: how many there are must be known."""
    if not isinstance(argument, (list, tuple)):
        return argument
    positions = []
    for index in argument:
        is_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        positions += index.nonzero(as_tuple=True) if is_mask else [index]
    return positions


def _kind() -> str:
    """Of what is allocated now, by who asked for it."""
    frame = sys._getframe(3)
    for _ in range(FRAMES):
        if frame is None:
            break
        if frame.f_globals.get("__name__") in MAKERS:
            return MAKERS[frame.f_globals["__name__"]]
        frame = frame.f_back
    return ACTIVATIONS
