"""The device of a process: what is known of a GPU by its name."""

import ctypes
import resource
import sys

import pytest
import torch

from tinylm import device

NAMES = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": None,
    "NVIDIA RTX A1000": None,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "NVIDIA GH200 144G HBM3e": 989e12,
    "NVIDIA A100-40C": None,
    "GRID A100-10C": None,
    "NVIDIA L40S-48Q": None,
    "NVIDIA A100X": None,
    "NVIDIA A10G": None,
    "NVIDIA A800-SXM4-80GB": None,
    "NVIDIA H20": None,
    "NVIDIA H800": None,
    "NVIDIA B200": None,
    "NVIDIA GB200": None,
    "NVIDIA L40G": None,
    "NVIDIA L20": None,
    "NVIDIA GeForce RTX 4090": None,
    "NVIDIA RTX 6000 Ada Generation": None,
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": None,
    "Tesla T4": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_of_a_gpu_is_found_by_the_words_of_its_name(name):
    assert device.data_sheet_flops(name) == NAMES[name]


@pytest.mark.parametrize("warn_only", [True, False])
def test_a_setting_of_the_caller_to_be_deterministic_is_kept(warn_only):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        with device.repeatable(torch.device("cpu")):
            assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)
    with device.repeatable(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_memory_that_is_kept_is_not_cleared_again_for_every_tensor(monkeypatch):
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("a C library without mallopt")
    for key in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(key, raising=False)
    device.keep_memory()
    torch.ones(2**21)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**21)
    # 8 MiB are 2,048 pages: each of the 20 would fault them all.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10 * 2048


def test_memory_settings_of_the_user_are_left_as_they_are(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setattr(ctypes, "CDLL", None)
    device.keep_memory()


def test_a_repeatable_step_does_not_fill_the_memory_that_it_allocates():
    with device.repeatable(torch.device("cpu")):
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_gpu_is_found_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.find("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="cuda:2: GPUs count from 0, and there are 2"):
        device.find("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda:1: torch finds none"):
        device.find("cuda:1")


def test_tf32_is_for_cuda_alone():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            device.use_tf32(torch.device("cuda"), allowed)
            device.use_tf32(torch.device("cpu"), not allowed)
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
