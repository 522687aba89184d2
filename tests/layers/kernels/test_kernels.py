from types import SimpleNamespace

import pytest
import torch

from wsss_affinity.layers import kernels


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.4.0", True), ("3.10.1", True), ("4.0.0+git12", True), ("3.3.1", False), (None, False)],
)
def test_available_on_cuda_with_a_recent_triton(monkeypatch, version, expected):
    spec = None if version is None else object()
    monkeypatch.setattr(kernels, "find_spec", lambda name: spec)
    monkeypatch.setattr(kernels, "import_module", lambda name: SimpleNamespace(__version__=version))
    kernels._recent_triton.cache_clear()
    try:
        assert kernels.available(SimpleNamespace(is_cuda=True)) == expected
        assert not kernels.available(torch.zeros(1))
    finally:
        kernels._recent_triton.cache_clear()
