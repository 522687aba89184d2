import pytest
import torch

from wsss_affinity.layers import add_background, normalize_cam

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(40, 56), (37, 45)])
def test_normalize(psa, agree, size, dtype):
    cam = (
        torch.rand(3, *size, dtype=dtype) * torch.tensor([1e-4, 1, 30], dtype=dtype)[:, None, None]
    )
    agree(normalize_cam(cam), psa.normalize(cam.numpy()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [4, 16, 32])
def test_background(psa, agree, alpha, dtype):
    cam = normalize_cam(torch.rand(2, 13, 7, dtype=dtype) ** 4)
    agree(add_background(cam, alpha), psa.with_background(cam.numpy(), alpha))
