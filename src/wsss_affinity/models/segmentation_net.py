"""The segmentation network that is trained on pseudo-masks."""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import timm
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_affinity.backbones import SHIPPED, Spec, list_backbones
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD, load_weights
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.models.multi_scale import multi_scale_sum
from wsss_affinity.models.smp_encoder import smp_options

#: what segmentation-models-pytorch raises where architecture and encoder do not go together
_UNFIT = (KeyError, TypeError, ValueError, NotImplementedError)


class SegmentationNet(nn.Module):
    """Any architecture of segmentation-models-pytorch, for images of any size.

    Args:
        num_classes: Labels of a mask, background included.
        architecture: Its name there: ``"DeepLabV3Plus"``, ``"Unet"``, ``"FPN"``, …
        encoder: Its encoder's name there, ``"timm:<model>"``, or what else
            :func:`~wsss_affinity.backbones.create_backbone` takes (backbones with maps at strides
            2, 4 and 8, such as ``"tiny"``, for DeepLabV3Plus only).
        weights: ``"imagenet"``, the path of a state dict of the encoder, or None; a module has its
            own.
        freeze_batchnorm: Keep every BatchNorm of the encoder as loaded.

    Raises:
        WSSSError: If the architecture or encoder is unknown, they do not go together, or weights
            are given for a module.

    Example:
        >>> import torch
        >>> net = SegmentationNet(4, architecture="Unet", encoder="resnet18").eval()
        >>> net(torch.zeros(1, 3, 50, 70)).shape
        torch.Size([1, 4, 50, 70])
    """

    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(
        self,
        num_classes: int,
        architecture: str = "DeepLabV3Plus",
        encoder: Spec = "resnet50",
        weights: str | None = None,
        freeze_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        known = smp.MODEL_ARCHITECTURES_MAPPING
        if architecture.lower() not in known:
            hint = did_you_mean(architecture, [model.__name__ for model in known.values()])
            raise WSSSError(f"segmentation architecture {architecture!r} is not known; {hint}")
        name = encoder.replace("timm:", "tu-", 1) if isinstance(encoder, str) else ""
        if name.startswith("tu-") and not timm.is_model(name.removeprefix("tu-")):
            raise WSSSError(
                f"segmentation encoder {encoder!r} is not a model of timm; see timm.list_models()"
            )
        if isinstance(encoder, nn.Module) and weights is not None:
            raise WSSSError(
                f"weights={weights!r} have no effect on a segmentation encoder that is already a "
                "module; load them where it is made"
            )
        timms = name.startswith("tu-")
        # their own of what both have, but what a plug-in or program calls by their name is not it
        named = name in list_backbones() or name.startswith("torchvision:")
        theirs = timms or name in smp.encoders.encoders
        own = not isinstance(encoder, str) or (named and not (theirs and name in SHIPPED))
        if not own and not theirs:
            hint = did_you_mean(str(encoder), smp.encoders.encoders)
            raise WSSSError(
                f"segmentation encoder {encoder!r} is not one of segmentation-models-pytorch; "
                f"{hint}"
            )
        try:
            if not own:
                imagenet = "imagenet" if weights == "imagenet" else None
                try:
                    self.network = smp.create_model(
                        architecture, name, encoder_weights=imagenet, classes=num_classes
                    )
                except _UNFIT:
                    if not timms:
                        raise
                    own = True  # a ViT, say, whose maps have to be resized
            if own:
                spec = f"timm:{name.removeprefix('tu-')}" if timms else encoder
                with smp_options(spec, weights) as options:
                    self.network = smp.create_model(
                        architecture, **options, encoder_weights=None, classes=num_classes
                    )
        except OSError as error:
            raise WSSSError(
                f"ImageNet weights of the segmentation encoder {encoder!r} cannot be downloaded "
                f"({error}); give the path of a state dict as weights"
            ) from error
        except _UNFIT as error:
            raise WSSSError(
                f"segmentation architecture {architecture!r} cannot use encoder {encoder!r}: "
                f"{error}; choose another of the two"
            ) from error
        if weights not in (None, "imagenet") and not own:
            load_weights(self.network.encoder, weights)
        self.pretrained = weights is not None or (
            own and bool(getattr(self.network.encoder.backbone, "pretrained", False))
        )
        self.freeze_batchnorm = freeze_batchnorm
        if freeze_batchnorm:
            for module in self._encoder_norms():
                module.requires_grad_(False)
            self.train(self.training)

    @property
    def backbone(self) -> nn.Module:
        """The encoder."""
        encoder: nn.Module = self.network.encoder
        return encoder

    def _encoder_norms(self) -> list[nn.Module]:
        kind = nn.modules.batchnorm._BatchNorm
        return [m for m in self.backbone.modules() if isinstance(m, kind)]

    def train(self, mode: bool = True) -> SegmentationNet:
        """Set training mode, but leave frozen BatchNorms in evaluation mode."""
        super().train(mode)
        if self.freeze_batchnorm:
            for module in self._encoder_norms():
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to logits ``(B, L, H, W)``."""
        height, width = images.shape[-2:]
        # every architecture accepts multiples of 32; some accept nothing else
        padded = F.pad(images, (0, -width % 32, 0, -height % 32))
        logits: Tensor = self.network(padded)
        return logits[..., :height, :width]

    def probabilities(
        self, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = True
    ) -> Tensor:
        """Average the label probabilities over scales of the image and its mirror image.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            scales: Factors on height and width.
            flip: Whether the mirror image takes part.

        Returns:
            ``(B, L, H, W)``, summing to 1 over the labels.
        """
        height, width = images.shape[-2:]
        total = multi_scale_sum(
            lambda x: self(x).softmax(1), images, size=(height, width), scales=scales, flip=flip
        )
        return total / total.sum(1, keepdim=True)
