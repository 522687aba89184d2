import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from wsss_affinity.layers import kernels


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.4.0", True), ("3.10.1", True), ("4.0.0+git12", True), ("3.3.1", False), (None, False)],
)
def test_available_on_cuda_with_a_recent_triton(monkeypatch, version, expected):
    spec = None if version is None else object()
    monkeypatch.setattr(kernels, "find_spec", lambda name: spec)
    monkeypatch.setattr(kernels, "import_module", lambda name: SimpleNamespace(__version__=version))
    monkeypatch.setattr(kernels, "Tensor", SimpleNamespace)
    kernels._recent_triton.cache_clear()
    try:
        assert kernels.available(SimpleNamespace(is_cuda=True)) == expected
        assert not kernels.available(torch.zeros(1))
    finally:
        kernels._recent_triton.cache_clear()


def test_fake_tensors_are_for_torch_operators(monkeypatch):
    monkeypatch.setattr(kernels, "_recent_triton", lambda: True)
    with FakeTensorMode():
        tensor = torch.zeros(1, device="cuda")
    assert tensor.is_cuda
    assert not kernels.available(tensor)


@pytest.mark.slow
def test_tests_of_the_layers_run_without_triton():
    code = "import sys, pytest; sys.modules['triton'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "src/wsss_affinity/layers", "tests/layers/kernels"]
    root = Path(__file__).parents[3]
    done = subprocess.run([*command, "-rs"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "could not import 'triton'" in done.stdout
