import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def psa():
    """The reference, which lies beside this file."""
    path = Path(__file__).with_name("psa.py")
    spec = importlib.util.spec_from_file_location("psa_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def agree():
    """Asserts that a tensor is within 1e-5 relative of the float64 reference, float64 1e-10.

    Near 0 the difference may be a tenth of that of the largest value, or the share `atol` of it.
    """

    def check(tensor, reference, atol=None):
        assert tensor.shape == np.shape(reference)
        rtol = {torch.float32: 1e-5, torch.float64: 1e-10}[tensor.dtype]
        if atol is None or tensor.dtype == torch.float64:
            atol = rtol / 10
        atol *= np.abs(reference).max()
        np.testing.assert_allclose(tensor.detach().numpy(), reference, rtol=rtol, atol=atol)

    return check
