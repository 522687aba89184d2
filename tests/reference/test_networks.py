"""Whole networks of random weights: the backbone in float64, everything after it rewritten."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_affinity.layers import add_background, normalize_cam
from wsss_affinity.losses import affinity_loss
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.pipeline.scores import best_labels, finish_scores

DTYPES = [torch.float32, torch.float64]
SIZES = [(40, 56), (37, 45)]
SCALES = (1.0, 0.5, 1.5, 2.0)
# a value near 0 is what is left of thousands of products: float32 knows it to about 1e-6 of the
# map's largest one, and after torch's bicubic, whose weights are float32, to several times that
DEEP = 1e-5


def picture(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 5, 6, generator=generator)
    noise = torch.randn(1, 3, *size, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic") + noise / 10


@torch.no_grad()
def settle(net):
    """BatchNorm statistics of some pictures, so that all levels have something to say."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    net.backbone.train()(torch.cat([picture((64, 64), seed) for seed in range(8)]))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["tiny", "resnet18"])
def backbone(request):
    return request.param


@pytest.fixture(scope="module")
def cam_net(backbone):
    torch.manual_seed(1)
    return settle(CAMNet(backbone, num_classes=4))


@pytest.fixture(scope="module")
def affinity_net(backbone):
    torch.manual_seed(2)
    net = settle(AffinityNet(backbone))
    # the initial weights put all pixels far apart; a trained network has near and far ones
    net.fuse.weight.mul_(0.05)
    return net


def maps_of(net, image):
    """The backbone's maps of an image (3, H, W) in float64."""
    backbone = copy.deepcopy(net.backbone).double()
    batch = torch.from_numpy(np.array(image, np.float64))[None]
    return [level[0].numpy() for level in backbone(batch)]


def matrix(conv):
    return conv.weight[:, :, 0, 0].double().numpy()


def reference_cam(psa, net, image):
    return psa.cam(maps_of(net, image)[-1], matrix(net.head.classifier))


def reference_scores(psa, net, image, label):
    """[bg with α 16, CAM of the present classes], all scales and their mirror images."""
    size = image.shape[1:]
    views, mirrored = [], []
    for scale in SCALES:
        scaled = psa.resize_bicubic(image, (round(scale * size[0]), round(scale * size[1])))
        for mirror in (False, True):
            view = scaled[:, :, ::-1] if mirror else scaled
            views.append(reference_cam(psa, net, view))
            mirrored.append(mirror)
    total = psa.aggregate_cams(views, mirrored, label, size)
    return psa.with_background(psa.normalize(total)[label == 1], 16)


def reference_features(psa, net, image):
    weights = [matrix(conv) for conv in net.levels]
    return psa.affinity_features(maps_of(net, image)[-3:], weights, matrix(net.fuse))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_cam(psa, agree, cam_net, size, dtype):
    image = picture(size)
    net = copy.deepcopy(cam_net).to(dtype)
    expected = reference_cam(psa, cam_net, image[0].numpy())
    assert (expected > 0).mean() > 0.2
    agree(net.cam(image.to(dtype))[0], expected, atol=DEEP)


@pytest.mark.parametrize("size", SIZES)
def test_scores_of_all_scales(psa, agree, cam_net, size):
    image = picture(size)
    label = np.array([1, 0, 1, 1])
    expected = reference_scores(psa, cam_net, image[0].double().numpy(), label)
    assert expected.shape == (4, *size)
    for dtype in DTYPES:
        net = copy.deepcopy(cam_net).to(dtype)
        cam = net.multi_scale_cam(image.to(dtype), size=size, scales=SCALES)[0]
        agree(add_background(normalize_cam(cam[label == 1]), 16), expected, atol=DEEP)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_features_affinities_and_loss(psa, agree, affinity_net, size, dtype):
    image = picture(size)
    net = copy.deepcopy(affinity_net).to(dtype)
    features = reference_features(psa, affinity_net, image[0].numpy())
    assert features.shape == (448, -(-size[0] // 8), -(-size[1] // 8))
    agree(net.features(image.to(dtype))[0], features, atol=DEEP)

    expected = psa.affinities(features)
    affinity = net(image.to(dtype))
    agree(affinity[0], expected)
    labels = torch.tensor([0, 0, 3, 3, 9, 255])[torch.randint(6, (1, *features.shape[1:]))]
    for border in ("full", "psa"):
        terms = psa.loss(expected[None], labels.numpy(), border=border)
        for name, value in affinity_loss(affinity, labels, border=border).items():
            agree(value, terms[name])


@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize("padding", ["masked", "psa"])
@pytest.mark.parametrize("size", [*SIZES, (75, 91)])
def test_propagate(psa, agree, affinity_net, size, padding, border):
    image, scores = picture(size), torch.rand(1, 3, *size)
    features = reference_features(psa, affinity_net, psa.pad(image[0].numpy()))
    weights = psa.affinities(features) ** 8
    assert 0.01 < weights[weights > 0].mean() < 0.9
    expected = psa.propagate(scores[0].numpy(), features, padding=padding, border=border)
    for dtype, tol in ((torch.float32, 1e-7), (torch.float64, 1e-12)):
        net = copy.deepcopy(affinity_net).to(dtype)
        for method in ("power", "chebyshev", "dense"):
            walked = net.propagate(
                image.to(dtype),
                scores.to(dtype),
                method=method,
                tol=tol,
                border=border,
                padding=padding,
            )
            agree(walked[0], expected, atol=0)


def test_paddings_differ_where_the_image_ends_in_a_cell(psa):
    scores = np.ones((1, 37, 45))
    masked, zeros = (psa.pool_scores(scores, 8, padding) for padding in ("masked", "psa"))
    assert (masked == 1).all()
    assert zeros[0, -1, 0] == 5 / 8
    assert zeros[0, 0, -1] == 5 / 8
    assert zeros[0, -1, -1] == 25 / 64


@pytest.mark.parametrize(
    ("size", "border", "padding"),
    [((80, 112), "full", "masked"), ((75, 91), "full", "masked"), ((75, 91), "psa", "psa")],
)
def test_from_the_image_to_the_pseudo_mask(
    psa, agree, cam_net, affinity_net, size, border, padding
):
    # enough to move the borders of objects; 256 steps with β = 8 leave one label of these weights
    options = {"beta": 32.0, "num_steps": 8, "border": border, "padding": padding}
    image, label = picture(size), np.array([1, 0, 1, 1])
    scores = reference_scores(psa, cam_net, image[0].double().numpy(), label)
    features = reference_features(psa, affinity_net, psa.pad(image[0].numpy()))
    expected = psa.upsample(psa.propagate(scores, features, **options), size)
    names = np.array([0, 1, 3, 4])
    labels = names[expected.argmax(0)]
    assert len(np.unique(labels)) > 1
    assert (labels != names[scores.argmax(0)]).mean() > 0.05

    classes = torch.tensor([0, 2, 3])
    cam = cam_net.multi_scale_cam(image, size=size, scales=SCALES)[0]
    ours = add_background(normalize_cam(cam[classes]), 16)[None]
    walked = affinity_net.propagate(image, ours, **options)[0]
    final = finish_scores(walked, size, 8)
    agree(final, expected, atol=DEEP)
    # a tie may fall to either side
    second, first = np.sort(expected, axis=0)[-2:]
    clear = first - second > 3 * DEEP
    assert clear.mean() > 0.99
    mask = best_labels(final, classes, background=True)
    np.testing.assert_array_equal(mask[clear], labels[clear])
