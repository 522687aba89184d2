import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from wsss_affinity.layers import kernels


@pytest.mark.parametrize("there", [True, False])
def test_available_on_cuda_with_a_recent_triton(monkeypatch, there):
    asked = []
    monkeypatch.setattr(kernels, "recent", lambda *a: asked.append(a) or there)
    monkeypatch.setattr(kernels, "Tensor", SimpleNamespace)
    assert kernels.available(SimpleNamespace(is_cuda=True)) == there
    assert not kernels.available(torch.zeros(1))
    assert asked == [("triton", (3, 4))]


def test_fake_tensors_are_for_torch_operators(monkeypatch):
    monkeypatch.setattr(kernels, "recent", lambda *a: True)
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
