"""Which implementation runs."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from keju.kernels import dispatch
from keju.kernels.dispatch import use_triton


def on_cuda(dtype=torch.float32):
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda", 0))


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one of this capability."""

    def of(*capability):
        dispatch._is_new_enough.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")

    monkeypatch.delenv("KEJU_KERNELS", raising=False)
    yield of
    dispatch._is_new_enough.cache_clear()


def test_triton_on_cuda_and_torch_elsewhere(gpu):
    gpu(9, 0)
    assert use_triton(on_cuda())
    assert not use_triton(torch.ones(1))
    assert not use_triton(on_cuda(torch.float64))


def test_an_old_gpu_gets_the_references_and_one_warning(gpu):
    gpu(7, 5)
    with pytest.warns(UserWarning, match=r"Some GPU is older than compute capability 8\.0"):
        assert not use_triton(on_cuda())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_triton(on_cuda())


def test_references_by_choice(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setenv("KEJU_KERNELS", "reference")
    assert not use_triton(on_cuda())


def test_without_triton(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setattr(dispatch, "triton", None)
    assert not use_triton(on_cuda())
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    with pytest.raises(ValueError, match="Triton is not installed"):
        use_triton(on_cuda())


def test_wrong_choices(monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "cuda")
    with pytest.raises(ValueError, match='KEJU_KERNELS=cuda: choose "reference" or "triton"'):
        use_triton(torch.ones(1))
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "is_interpreted", lambda: False)
    with pytest.raises(ValueError, match="a tensor on cpu needs TRITON_INTERPRET=1"):
        use_triton(torch.ones(1))


def test_in_a_rehearsal_ops_take_the_route_of_a_gpu_and_launch_nothing(monkeypatch):
    monkeypatch.delenv("KEJU_KERNELS", raising=False)
    pytest.importorskip("triton")
    with dispatch.rehearsal():
        assert use_triton(torch.ones(1)) and not use_triton(torch.ones(1, dtype=torch.float64))
        assert dispatch.on_gpu(torch.ones(1)) and dispatch.shared_memory(torch.ones(1)) > 0
        dispatch.launch(None, (1,))
    assert not use_triton(torch.ones(1)) and not dispatch.on_gpu(torch.ones(1))
