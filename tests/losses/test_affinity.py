import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from wsss_affinity.layers import Neighborhood, pairwise_affinity
from wsss_affinity.losses import affinity_loss

EPS = 1e-5


def reference(affinity, labels, radius, border="full"):
    """Plain loops in float64."""
    sets = {"bg": [], "fg": [], "neg": []}
    batch, _, height, width = affinity.shape
    rim = radius - 1
    for b in range(batch):
        for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
            for y in range(height):
                for x in range(width):
                    if not (y + dy < height and 0 <= x + dx < width):
                        continue
                    if border == "psa" and not (y < height - rim and rim <= x < width - rim):
                        continue
                    first, second = labels[b, y, x].item(), labels[b, y + dy, x + dx].item()
                    a = affinity[b, k, y, x].item()
                    if 255 in (first, second):
                        continue
                    if first != second:
                        sets["neg"].append(-math.log(1 + EPS - a))
                    else:
                        sets["bg" if first == 0 else "fg"].append(-math.log(a + EPS))
    terms = {name: sum(values) / (len(values) + EPS) for name, values in sets.items()}
    return {"loss": terms["bg"] / 4 + terms["fg"] / 4 + terms["neg"] / 2, **terms}


def random_labels(*shape):
    return torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, shape)]


@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize(
    ("shape", "radius"), [((2, 11, 12), 5), ((1, 3, 2), 5), ((1, 1, 1), 5), ((3, 4, 6), 2)]
)
def test_equals_loops(shape, radius, border):
    affinity = pairwise_affinity(torch.randn(shape[0], 4, *shape[1:], dtype=torch.float64), radius)
    labels = random_labels(*shape)
    result = affinity_loss(affinity, labels, radius, border)
    expected = reference(affinity, labels, radius, border)
    assert list(result) == ["loss", "bg", "fg", "neg"]
    for name, value in expected.items():
        assert result[name].shape == ()
        assert result[name].item() == pytest.approx(value, rel=1e-10)


def test_the_means_are_over_the_batch_not_over_its_images():
    affinity = torch.rand(2, 4, 3, 3, dtype=torch.float64)
    labels = torch.zeros(2, 3, 3, dtype=torch.int64)
    labels[1, :, 1:] = 255  # the second image has few pairs
    both = affinity_loss(affinity, labels, radius=2)["bg"].item()
    assert both == pytest.approx(reference(affinity, labels, 2)["bg"], rel=1e-10)
    single = [affinity_loss(affinity[i : i + 1], labels[i : i + 1], 2)["bg"].item() for i in (0, 1)]
    assert both != pytest.approx(sum(single) / 2, rel=1e-3)


@pytest.mark.parametrize("border", ["full", "psa"])
def test_gradcheck(border):
    labels = random_labels(2, 5, 6)
    planes = len(Neighborhood(3))
    affinity = (torch.rand(2, planes, 5, 6, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()

    def terms(a):
        return tuple(affinity_loss(a, labels, 3, border).values())

    assert torch.autograd.gradcheck(terms, (affinity,))


def test_gradient_reaches_no_pair_outside_the_grid_or_unsure():
    affinity = torch.rand(1, 34, 6, 7, requires_grad=True)
    labels = random_labels(1, 6, 7)
    affinity_loss(affinity, labels)["loss"].backward()
    for k, (dy, dx) in enumerate(Neighborhood().pairs):
        for y in range(6):
            for x in range(7):
                inside = y + dy < 6 and 0 <= x + dx < 7
                counts = inside and 255 not in (labels[0, y, x], labels[0, y + dy, x + dx])
                assert (affinity.grad[0, k, y, x].item() != 0) == counts


def test_nothing_sure_gives_zero_with_zero_gradient():
    affinity = torch.rand(1, 34, 5, 5, requires_grad=True)
    terms = affinity_loss(affinity, torch.full((1, 5, 5), 255))
    assert {name: value.item() for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    terms["loss"].backward()
    assert torch.equal(affinity.grad, torch.zeros_like(affinity))


def test_perfect_and_worst_affinities_are_finite_and_known():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    # radius 2 on one row: pairs (0,0), (0,1), (1,1)
    perfect = torch.zeros(1, 4, 1, 4, dtype=torch.float64)
    perfect[0, 0, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    terms = affinity_loss(perfect, labels, radius=2)
    assert terms["loss"].item() == pytest.approx(0, abs=2e-5)
    terms = affinity_loss(1 - perfect, labels, radius=2)
    for name in ("bg", "fg", "neg", "loss"):
        assert terms[name].item() == pytest.approx(-math.log(EPS), rel=1e-4)
    # the same in float32, where 1 + 1e-5 - 1 must not round to 0
    assert affinity_loss((1 - perfect).float(), labels, 2)["loss"].item() == pytest.approx(
        -math.log(EPS), rel=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    affinity = torch.ones(2, 34, 50, 60, dtype=dtype, requires_grad=True)
    labels = torch.zeros(2, 50, 60, dtype=torch.int64)
    labels[:, :, 30:] = 3
    terms = affinity_loss(affinity, labels)
    expected = affinity_loss(affinity.detach().float(), labels)
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == expected[name].item()
    # log(1e-5), averaged over more pairs than float16 can count
    assert terms["neg"].item() == pytest.approx(-math.log(EPS), rel=2e-3)
    terms["loss"].backward()
    assert affinity.grad.dtype == dtype
    assert bool(affinity.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_labels(dtype):
    affinity = torch.rand(1, 34, 6, 6, dtype=torch.float64)
    labels = random_labels(1, 6, 6)
    result = affinity_loss(affinity, labels.to(dtype))["loss"].item()
    assert result == pytest.approx(reference(affinity, labels, 5)["loss"], rel=1e-10)


@pytest.mark.parametrize(
    ("affinity", "labels"),
    [
        ((1, 33, 6, 6), (1, 6, 6)),
        ((1, 34, 6, 6), (1, 6, 5)),
        ((2, 34, 6, 6), (1, 6, 6)),
        ((34, 6, 6), (6, 6)),
        ((1, 34, 6, 6), (1, 1, 6, 6)),
    ],
)
def test_shapes_are_checked(affinity, labels):
    with pytest.raises(
        ValueError, match=r"\(B, 34, h, w\) and label_map of shape \(B, h, w\)"
    ) as e:
        affinity_loss(torch.rand(affinity), torch.zeros(labels, dtype=torch.int64))
    assert str(affinity) in str(e.value)
    assert str(labels) in str(e.value)


@pytest.mark.parametrize(
    ("affinity", "labels", "message"),
    [
        (torch.float32, torch.float32, "label_map integer, got torch.float32 and torch.float32"),
        (torch.int64, torch.int64, "affinity must be floating point .* got torch.int64 and torch."),
    ],
)
def test_types_are_checked(affinity, labels, message):
    with pytest.raises(ValueError, match=message):
        affinity_loss(torch.ones(1, 34, 4, 4, dtype=affinity), torch.ones(1, 4, 4, dtype=labels))


def test_devices_are_checked():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="affinity is on cpu and label_map on meta; move one"):
        affinity_loss(torch.rand(1, 34, 4, 4), labels)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_values_that_are_no_affinities_make_the_loss_nan(value):
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, 2:] = 1
    affinity = torch.full((1, 34, 4, 4), value)
    assert math.isnan(affinity_loss(affinity, labels)["loss"].item())


def test_border_and_radius_are_checked():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="border must be 'full' or 'psa', got 'half'"):
        affinity_loss(torch.rand(1, 34, 4, 4), labels, border="half")
    with pytest.raises(ValueError, match="radius must be a whole number of at least 2"):
        affinity_loss(torch.rand(1, 34, 4, 4), labels, radius=1)


def test_only_affinities_and_one_value_a_pair_are_kept_for_the_gradient():
    affinity = torch.rand(2, 34, 20, 21, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        affinity_loss(affinity, random_labels(2, 20, 21))
    # the argument of the logarithm in float32; four masks of a byte
    assert 0 < sum(kept.values()) <= 8.1 * affinity.numel()


def test_compiled_equals_eager():
    affinity, labels = torch.rand(2, 34, 6, 7, requires_grad=True), random_labels(2, 6, 7)
    compiled = torch.compile(affinity_loss, backend="eager")(affinity, labels)
    expected = affinity_loss(affinity, labels)
    assert {n: v.item() for n, v in compiled.items()} == {n: v.item() for n, v in expected.items()}
    (found,) = torch.autograd.grad(compiled["loss"], affinity)
    assert torch.equal(found, *torch.autograd.grad(expected["loss"], affinity))


def test_training_after_validation_in_inference_mode():
    affinity, labels = torch.rand(1, 34, 5, 9), random_labels(1, 5, 9)
    with torch.inference_mode():
        expected = affinity_loss(affinity, labels)["loss"].item()
    loss = affinity_loss(affinity.requires_grad_(), labels)["loss"]
    loss.backward()
    assert loss.item() == expected
    assert bool(affinity.grad.any())


def test_fake_tensors_before_and_after_real_ones():
    affinity, labels = torch.rand(1, 34, 7, 3, dtype=torch.float64), random_labels(1, 7, 3)
    for _ in range(2):
        with FakeTensorMode() as mode:
            loss = affinity_loss(mode.from_tensor(affinity), mode.from_tensor(labels))["loss"]
        assert isinstance(loss, torch.Tensor)
        assert type(loss) is not torch.Tensor
        loss = affinity_loss(affinity, labels)["loss"].item()
        assert loss == pytest.approx(reference(affinity, labels, 5)["loss"], rel=1e-10)


def test_func_grad_before_and_after_autograd():
    affinity, labels = torch.rand(1, 34, 3, 8), random_labels(1, 3, 8)

    def loss(a):
        return affinity_loss(a, labels)["loss"]

    found = torch.func.grad(loss)(affinity)
    leaf = affinity.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert bool(expected.any())
    assert torch.equal(found, expected)
    assert torch.equal(torch.func.grad(loss)(affinity), expected)


def test_vmap_gives_the_loss_of_each_image():
    affinity, labels = torch.rand(3, 34, 6, 7, dtype=torch.float64), random_labels(3, 6, 7)
    mapped = torch.func.vmap(affinity_loss)(affinity[:, None], labels[:, None])
    for i in range(3):
        expected = affinity_loss(affinity[i : i + 1], labels[i : i + 1])["loss"].item()
        assert mapped["loss"][i].item() == pytest.approx(expected, rel=1e-12)


def test_autocast_keeps_float32():
    affinity, labels = torch.rand(1, 34, 6, 7), random_labels(1, 6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        result = affinity_loss(affinity, labels)["loss"]
    assert result.item() == affinity_loss(affinity, labels)["loss"].item()


@pytest.mark.gpu
def test_cuda_equals_cpu():
    affinity, labels = torch.rand(2, 34, 20, 30), random_labels(2, 20, 30)
    ours = affinity_loss(affinity.cuda(), labels.cuda())
    for name, value in affinity_loss(affinity, labels).items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_processes_that_share_a_batch():
    """The mean of their losses and gradients is that of the whole batch."""
    shape = (3, len(Neighborhood(4)), 9, 8)
    affinity = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (3, 9, 8))
    labels[1:, 2:] = 255  # sets of other sizes in the second part
    whole = affinity_loss(affinity, labels, radius=4)
    (expected,) = torch.autograd.grad(whole["loss"], affinity)

    parts = (slice(0, 1), slice(1, 3))
    counted = []
    for part in parts:
        affinity_loss(
            affinity[part], labels[part], radius=4, sum_counts=lambda c: counted.append(c) or c
        )
    terms = [
        affinity_loss(affinity[p], labels[p], radius=4, sum_counts=lambda _: sum(counted))
        for p in parts
    ]
    assert not torch.equal(counted[0], counted[1])
    for name, value in whole.items():
        torch.testing.assert_close((terms[0][name] + terms[1][name]) / 2, value)
    (found,) = torch.autograd.grad((terms[0]["loss"] + terms[1]["loss"]) / 2, affinity)
    torch.testing.assert_close(found, expected)
