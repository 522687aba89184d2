"""Activation maps by other methods than the classifier's own, through the package ``grad-cam``."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.models.cam_net import CAMNet

#: maps images ``(B, 3, H, W)`` and 0-based classes ``(n,)`` to maps ``(B, C, h, w)``, at least 0
CAMFunction = Callable[[Tensor, Tensor], Tensor]

#: class of ``pytorch_grad_cam`` by our name
_METHODS = {
    "gradcam": "GradCAM",
    "gradcam_plusplus": "GradCAMPlusPlus",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
}
CAM_METHODS = ("cam", *_METHODS)

_BLIND = "it makes the same map for every class of an image"
_SAME = "on the last feature map, under a linear classifier, it is the same as cam"
_REFUSED = {
    "eigencam": _BLIND,
    "kpca_cam": _BLIND,
    "fem": _BLIND,
    "randomcam": "its maps are random",
    "eigengradcam": "the sign of its maps is arbitrary",
    "hirescam": _SAME,
    "xgradcam": _SAME,
    "gradcam_elementwise": "it is the same as layercam here, but for negative weights",
    "fullgrad": "it wants biases, which the classifier has none of",
}


def check_cam_method(method: str) -> None:
    """Refuse a method that is not known, makes no sense here, or needs a missing package.

    Raises:
        WSSSError: With what to choose or install.
    """
    if method == "cam":
        return
    if method in _REFUSED:
        raise WSSSError(
            f"cam.method={method} is of no use here: {_REFUSED[method]}; choose one of "
            f"{', '.join(CAM_METHODS)}"
        )
    if method not in _METHODS:
        raise WSSSError(f"cam.method is {method!r}; {did_you_mean(str(method), CAM_METHODS)}")
    try:
        import pytorch_grad_cam  # noqa: F401
    except ImportError as error:
        raise WSSSError(
            f"cam.method={method} needs the package grad-cam ({error}); install it with "
            "pip install 'wsss-affinity[cams]', or set cam.method=cam"
        ) from error


def cam_function(net: CAMNet, method: str = "cam") -> CAMFunction:
    """How activation maps are made of images.

    Args:
        net: The trained classifier, in evaluation mode.
        method: ``"cam"`` for ``net.cam``, which gives the maps of all classes; another one of
            ``CAM_METHODS`` for :class:`GradCAMs`.

    Raises:
        WSSSError: See :func:`check_cam_method`.
    """
    check_cam_method(method)
    return GradCAMs(net, method) if method != "cam" else lambda images, _: net.cam(images)


class GradCAMs:
    """Activation maps by a method of the package ``grad-cam``, on the last feature map.

    The map of each class is scaled to [0, 1] over the image, so that scales of an image count
    alike when they are summed: gradients grow as the image gets smaller. Each class takes a
    forward pass; Score-CAM takes one for every channel of the feature map too.

    With Grad-CAM (Selvaraju et al., ICCV 2017) the maps are those of :meth:`CAMNet.cam
    <wsss_affinity.models.CAMNet.cam>` up to that scale. LayerCAM (Jiang et al., TIP 2021) drops
    the channels that speak against a class, Grad-CAM++ (Chattopadhay et al., WACV 2018) too and
    weighs the others anew, and Score-CAM (Wang et al., CVPR Workshops 2020) weighs a channel by the
    score of the image seen through it.

    Args:
        net: The classifier.
        method: One of ``CAM_METHODS`` but ``"cam"``.

    Raises:
        WSSSError: See :func:`check_cam_method`.
    """

    def __init__(self, net: CAMNet, method: str) -> None:
        check_cam_method(method)
        import pytorch_grad_cam

        parts = _LastMap(net).eval()
        kind: Any = getattr(pytorch_grad_cam, _METHODS[method])
        self._cam = kind(parts, target_layers=[parts.last])
        self._num_classes = net.head.classifier.out_channels

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """Make the maps of some classes.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            classes: ``(n,)``, 0-based.

        Returns:
            ``(B, C, H, W)``: 0 for the other classes.
        """
        # inference tensors have no gradients; a copy made outside of that mode has
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone()
            maps = images.new_zeros(len(images), self._num_classes, *images.shape[-2:])
            for index in classes.tolist():
                targets = [_Score(index)] * len(images)
                with redirect_stderr(io.StringIO()):  # a bar for every image
                    found = self._cam(images, targets)
                maps[:, index] = torch.from_numpy(found).to(maps)
        return maps


class _LastMap(nn.Module):
    """The classifier, with a layer whose output is the feature map that gradients are taken at."""

    def __init__(self, net: CAMNet) -> None:
        super().__init__()
        self.net = net
        self.last = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():  # the maps need no gradient of the backbone
            features = self.net.backbone(images)[-1]
        logits: Tensor = self.net.head(self.last(features.requires_grad_()))
        return logits


class _Score:
    """What is explained: the logit of a class."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[self.index]
