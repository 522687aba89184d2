import pytest
import torch

from wsss_affinity.layers import Neighborhood, attention_affinity, random_walk


def reference(attention, grid, radius):
    """The definition, with matrices over all patches and alternating scaling to convergence."""
    height, width = grid
    planes = torch.zeros(len(Neighborhood(radius)), height, width, dtype=torch.float64)
    y, x = (c.flatten() for c in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    near = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2
    near.fill_diagonal_(False)
    matrix = (attention + attention.T).double() * near
    for _ in range(2000):
        matrix = matrix / matrix.sum(1, keepdim=True)
        matrix = matrix / matrix.sum(0, keepdim=True)
    most = matrix.amax(1)
    matrix = matrix / (most[:, None] * most).sqrt()
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for i in range(height * width):
            other = y[i] + dy, x[i] + dx
            if other[0] < height and 0 <= other[1] < width:
                planes[k, y[i], x[i]] = matrix[i, other[0] * width + other[1]]
    return planes.float()


@pytest.mark.parametrize(("grid", "radius"), [((4, 5), 3), ((2, 7), 5), ((5, 5), 3)])
def test_matches_the_definition(grid, radius):
    tokens = grid[0] * grid[1]
    attention = torch.randn(2, tokens, tokens).mul(2).softmax(-1)
    planes = attention_affinity(attention, grid, radius)
    for one, matrix in zip(planes, attention, strict=True):
        expected = reference(matrix, grid, radius)
        assert expected.std() > 0.1
        torch.testing.assert_close(one, expected, atol=0.01, rtol=0)
    assert planes.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_balances_in_float32_at_least_and_keeps_the_dtype(dtype):
    attention = torch.rand(1, 20, 20, dtype=torch.float64).mul(4).softmax(-1).to(dtype)
    attention[:, 3] = attention[:, :, 3] = 0  # where nothing is heeded, a small number divides
    planes = attention_affinity(attention, (4, 5))
    assert planes.dtype == dtype
    if dtype == torch.float64:  # float32 would leave rounding errors
        float32 = attention_affinity(attention.float(), (4, 5))
        torch.testing.assert_close(planes.float(), float32)
        assert not torch.equal(planes, float32.double())
    else:
        assert torch.equal(planes, attention_affinity(attention.float(), (4, 5)).to(dtype))


def test_neither_scale_nor_patches_that_all_heed_matter():
    attention = torch.rand(1, 20, 20)
    planes = attention_affinity(attention, (4, 5))
    torch.testing.assert_close(attention_affinity(attention / 1000, (4, 5)), planes)
    weight = torch.ones(20)
    weight[7] = 10
    heeded = attention_affinity(attention * weight[:, None] * weight, (4, 5))
    torch.testing.assert_close(heeded, planes, atol=0.01, rtol=0)


def test_patches_that_heed_nothing_are_cut_off():
    planes = attention_affinity(torch.zeros(1, 6, 6), (2, 3), 2)
    assert torch.equal(planes, torch.zeros(1, 4, 2, 3))


def test_walk_stays_within_what_heeds_each_other():
    side = torch.arange(6).repeat(6) < 3  # left and right half of a 6×6 grid
    attention = torch.where(side[:, None] == side, 1.0, 1e-3) / 18
    scores = torch.zeros(1, 1, 6, 6)
    scores[..., :2, 0] = 1
    walked = random_walk(scores, attention_affinity(attention[None], (6, 6)), beta=1, num_steps=64)
    assert walked[..., :3].min() > 4 * walked[..., 3:].max()


def test_gradients_reach_the_attention():
    attention = torch.rand(1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: attention_affinity(a, (2, 3), 2), attention)


@pytest.mark.parametrize("shape", [(1, 6, 5), (6, 6), (1, 5, 5)])
def test_attention_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"shape \(B, N, N\) with N = 2·3, got "):
        attention_affinity(torch.zeros(shape), (2, 3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, "attention must hold values of at least 0, as a softmax gives them, got -0.1"),
        (float("nan"), "at least 0, .* got nan"),
    ],
)
def test_attention_below_0_is_refused(value, message):
    attention = torch.full((1, 6, 6), 0.5)
    attention[0, 2, 4] = value
    with pytest.raises(ValueError, match=message):
        attention_affinity(attention, (2, 3))


def test_attention_of_whole_numbers_is_refused():
    with pytest.raises(ValueError, match=r"must be floating point, got torch\.int64"):
        attention_affinity(torch.ones(1, 6, 6, dtype=torch.int64), (2, 3))
