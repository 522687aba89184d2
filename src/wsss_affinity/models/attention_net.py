"""Affinities without training: the self-attention of a vision transformer."""

from __future__ import annotations

from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import Tensor

from wsss_affinity.backbones.base import load_weights
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.layers.attention_affinity import attention_affinity
from wsss_affinity.layers.neighborhood import Neighborhood
from wsss_affinity.models.walking_net import WalkingNet


class AttentionNet(WalkingNet):
    """Stands in for AffinityNet in the walk, with the attention of a ViT for affinities.

    The attention between patches is averaged over heads and layers; see
    :func:`~wsss_affinity.layers.attention_affinity` for what is made of it. The stride is the side
    of a patch, so it is coarser than AffinityNet's. It takes memory of the square of the number of
    patches for each head.

    Args:
        name: A plain ViT of timm (ViT, DeiT, DINO, DINOv2, CLIP, …).
        weights: ``"imagenet"`` for timm's pretrained weights, a path, or None.
        radius: Radius of the neighbourhood in patches.

    Raises:
        WSSSError: If timm does not know the model, or it has no attention between all patches.

    Example:
        >>> import torch
        >>> net = AttentionNet("vit_tiny_patch16_224", weights=None)
        >>> net(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 34, 4, 6])
    """

    def __init__(self, name: str, weights: str | None = "imagenet", radius: int = 5) -> None:
        super().__init__()
        self.radius = Neighborhood(radius).radius
        self.network: Any = _vit(name, weights)
        self.stride = int(self.network.patch_embed.patch_size[0])
        config: dict[str, Any] = resolve_data_config({}, model=self.network)  # type: ignore[no-untyped-call]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to affinities ``(B, K, H / stride, W / stride)``.

        Raises:
            ValueError: If height or width is no multiple of the stride.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"height and width must be multiples of {self.stride}, got {height}×{width}"
            )
        grid = height // self.stride, width // self.stride
        return attention_affinity(self.attention(images), grid, self.radius)

    def attention(self, images: Tensor) -> Tensor:
        """Attention between patches ``(B, N, N)``, the mean over heads and layers."""
        special = self.network.num_prefix_tokens  # class token and registers
        seen: list[Tensor] = []

        def add(_: object, __: object, attention: Tensor) -> None:
            mean = attention[:, :, special:, special:].mean(1)
            seen[:] = [mean if not seen else seen[0] + mean]

        blocks = self.network.blocks
        hooks = [block.attn.attn_drop.register_forward_hook(add) for block in blocks]
        try:
            self.network.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return seen[0] / len(blocks)


def _vit(name: str, weights: str | None) -> Any:
    base = name.partition(".")[0]  # a tag of pretrained weights may follow
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models())
        hint = hint if hint.startswith("did") else "see timm.list_models('vit_*')"
        raise WSSSError(f"{name!r} is not a model of timm; {hint}")
    refusal = (
        f"timm's {name} has no attention between all patches of an image of any size; choose a "
        "plain ViT, e.g. vit_small_patch16_224"
    )
    try:
        network: Any = timm.create_model(
            name, pretrained=weights == "imagenet", num_classes=0, dynamic_img_size=True
        )
    except TypeError as error:
        raise WSSSError(refusal) from error
    except RuntimeError as error:
        raise WSSSError(
            f"timm cannot make {name!r} ({error}); see timm.list_pretrained()"
        ) from error
    except OSError as error:
        raise WSSSError(
            f"pretrained weights of timm's {name} cannot be downloaded ({error}); give the path of "
            "a state dict as weights"
        ) from error
    parts: list[Any] = [getattr(block, "attn", None) for block in getattr(network, "blocks", ())]
    if not parts or not all(hasattr(p, "attn_drop") and hasattr(p, "fused_attn") for p in parts):
        raise WSSSError(refusal)
    if hasattr(network.patch_embed, "backbone"):  # timm's HybridEmbed: its stride is another
        raise WSSSError(
            f"timm's {name} makes its patches with a convolutional network; choose a plain ViT, "
            "e.g. vit_small_patch16_224"
        )
    for part in parts:
        part.fused_attn = False  # the fused kernel does not keep the attention
    if weights not in (None, "imagenet"):
        load_weights(network, weights)
    return network
