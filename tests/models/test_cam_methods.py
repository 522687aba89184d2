import sys

import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.errors import WSSSError
from wsss_affinity.models import CAMNet
from wsss_affinity.models.cam_methods import (
    CAM_METHODS,
    GradCAMs,
    cam_function,
    check_cam_method,
)

needs_grad_cam = pytest.mark.usefixtures("grad_cam")


@pytest.fixture(scope="module")
def grad_cam():
    pytest.importorskip("pytorch_grad_cam", reason="the extra 'cams' is not installed")


@pytest.fixture
def net():
    return CAMNet("tiny", num_classes=3).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 40)


def to_unit(maps):
    """What grad-cam does with a map: from its minimum to its maximum, 0 to 1, at image size."""
    maps = F.interpolate(maps.relu()[:, None], (32, 40), mode="bilinear", align_corners=False)[:, 0]
    maps = maps - maps.amin((-2, -1), keepdim=True)
    return maps / maps.amax((-2, -1), keepdim=True)


def of_one_class(method, net, images, features, index):
    """The maps before scaling, written down from the papers."""
    weight = net.head.classifier.weight[index, :, 0, 0]
    gradient = weight / features[0, 0].numel()
    if method == "gradcam":
        return torch.einsum("d,bdhw->bhw", gradient, features)
    if method == "layercam":
        return torch.einsum("d,bdhw->bhw", gradient.relu(), features)
    if method == "gradcam_plusplus":
        total = features.sum((2, 3))
        # the package keeps the denominator from 0 by 1e-6
        alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
        return torch.einsum("bd,bdhw->bhw", gradient.relu() * alpha, features)
    assert method == "scorecam"
    up = F.interpolate(features, images.shape[-2:], mode="bilinear", align_corners=True)
    low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
    masks = (up - low) / (high - low + 1e-8)
    scores = [net(image * m[:, None])[:, index] for image, m in zip(images, masks, strict=True)]
    return torch.einsum("bd,bdhw->bhw", torch.stack(scores).softmax(1), features)


@needs_grad_cam
@pytest.mark.parametrize("method", CAM_METHODS[1:])
def test_maps_are_those_of_the_papers(method, net, images, capfd):
    with torch.inference_mode():  # as the pipeline calls it
        maps = GradCAMs(net, method)(images, torch.tensor([0, 2]))
    assert maps.shape == (2, 3, 32, 40)
    assert not maps[:, 1].any()
    with torch.no_grad():
        features = net.backbone(images)[-1]
        for index in (0, 2):
            expected = to_unit(of_one_class(method, net, images, features, index))
            assert expected.amax() > 0.5
            torch.testing.assert_close(maps[:, index], expected, atol=2e-3, rtol=0)
    assert capfd.readouterr().err == ""


@needs_grad_cam
def test_gradcam_is_the_cam_of_the_classifier(net, images):
    classes = torch.tensor([1])
    maps = cam_function(net, "gradcam")(images, classes)[:, 1]
    with torch.no_grad():
        cam = cam_function(net)(images, classes)
    assert cam.shape == (2, 3, 4, 5)
    torch.testing.assert_close(maps, to_unit(cam[:, 1]), atol=1e-4, rtol=0)


@needs_grad_cam
def test_frozen_networks_have_maps_too(net, images):
    before = GradCAMs(net, "layercam")(images, torch.tensor([0]))
    net.requires_grad_(False)
    after = GradCAMs(net, "layercam")(images, torch.tensor([0]))
    assert before.amax() > 0.9
    assert torch.equal(before, after)


@needs_grad_cam
def test_no_class_no_map(net, images):
    assert not GradCAMs(net, "gradcam")(images, torch.tensor([], dtype=torch.int64)).any()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("eigencam", r"cam.method=eigencam is of no use here: it makes the same map for every"),
        ("hirescam", r"the same as cam; choose one of cam, gradcam, gradcam_plusplus"),
        ("eigengradcam", "the sign of its maps is arbitrary"),
        ("layer_cam", r"cam.method is 'layer_cam'; did you mean 'layercam'"),
        (None, "cam.method is None; valid names: cam, gradcam"),
    ],
)
def test_methods_that_are_refused(net, method, message):
    with pytest.raises(WSSSError, match=message):
        cam_function(net, method)


def test_missing_package_is_named(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(WSSSError, match=r"pip install 'wsss-affinity\[cams\]', or set cam.method"):
        check_cam_method("layercam")
    check_cam_method("cam")
