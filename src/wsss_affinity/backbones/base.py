"""The contract between a backbone and everything built on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from wsss_affinity.checkpoint import read_state_dict
from wsss_affinity.errors import WSSSError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureInfo:
    """What a backbone returns: channels and stride of each feature map, in order."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class HeadStyle:
    """How the heads of a network are built on a backbone; the published ones differ.

    Attributes:
        cam_dropout: Channel dropout before the classifier's pooling.
        cam_activation: ``"relu"``, or ``"sqrt"`` for ``sqrt(relu(·))`` in activation maps.
        cam_xavier: Whether the classifier starts from Xavier-uniform weights.
        affinity_groups: Groups of a GroupNorm after each 1×1 convolution of AffinityNet's three
            levels; None for no GroupNorm.
    """

    cam_dropout: float = 0.0
    cam_activation: Literal["relu", "sqrt"] = "relu"
    cam_xavier: bool = False
    affinity_groups: tuple[int, int, int] | None = None


class Backbone(nn.Module):
    """Base class of backbones; any module with the same attributes keeps the contract too.

    ``forward`` maps images ``(B, 3, H, W)``, normalised with ``mean`` and ``std`` of RGB in
    [0, 1], to a list of feature maps ``(B, channels[i], ceil(H / strides[i]), …)``, finest first.

    Attributes:
        feature_info: Channels and strides of the list.
        mean: Per channel, subtracted from RGB in [0, 1].
        std: Per channel, divided by.
        heads: How the heads on it are built.
        pretrained: Whether weights were loaded; untrained backbones learn at the rate of a head.
    """

    feature_info: FeatureInfo
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    heads: HeadStyle = HeadStyle()
    pretrained: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._frozen_batchnorm = False
        self._frozen_stages = 0

    @property
    def stages(self) -> list[nn.Module]:
        """Groups of layers, first to last; ``freeze`` counts them."""
        return []

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``(B, 3, H, W)`` to feature maps, finest first."""
        raise NotImplementedError

    def for_affinity(self) -> None:
        """Change what AffinityNet needs otherwise than a classifier; it calls this once."""

    def freeze(self, *, batchnorm: bool = False, num_stages: int = 0) -> None:
        """Keep parts of the network as they are.

        Args:
            batchnorm: Every BatchNorm keeps its statistics, weight and bias.
            num_stages: The first so many ``stages`` keep all their parameters and statistics.

        Raises:
            WSSSError: If there are fewer stages.
        """
        stages = self.stages
        if not 0 <= num_stages <= len(stages):
            raise WSSSError(
                f"freeze_stages={num_stages} is out of range: this backbone has "
                f"{len(stages)} stages that can be frozen"
            )
        self._frozen_batchnorm, self._frozen_stages = batchnorm, num_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode, but leave the frozen parts in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        # looked up each time: converting to SyncBatchNorm, say, replaces modules
        frozen = list(self.stages[: self._frozen_stages])
        if self._frozen_batchnorm:
            frozen += [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return frozen


def load_weights(module: nn.Module, path: str | Path) -> list[str]:
    """Load a state dict from a file into ``module``.

    The prefixes ``module.`` (data-parallel training) and ``network.`` (our adapters) are ignored.
    Entries that the module has no place for are ignored (a classifier's head, say).

    Returns:
        Names that the file lacked.

    Raises:
        WSSSError: If the path is none, the file is missing or no state dict, if less than half of
            the parameters are in it, or if a shape differs.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise WSSSError(f"weights are a name such as imagenet, a path, or null, got {path!r}")
    state = {_bare(n): v for n, v in read_state_dict(path).items()}
    names = {_bare(n): n for n in module.state_dict()}
    own = {_bare(n): v for n, v in module.state_dict().items()}
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            raise WSSSError(
                f"weights file {path}: {name} has shape {tuple(state[name].shape)}, the backbone "
                f"expects {tuple(own[name].shape)}; is it another architecture's?"
            )
    # older files have no such counters
    wanted = [n for n in own if not n.endswith("num_batches_tracked")]
    missing = [n for n in wanted if n not in state]
    if 2 * len(missing) > len(wanted):
        raise WSSSError(
            f"weights file {path} fits {len(wanted) - len(missing)} of {len(wanted)} entries of "
            f"the backbone (missing: {missing[0]}, …); is it another architecture's?"
        )
    module.load_state_dict({names[k]: v for k, v in state.items() if k in own}, strict=False)
    return missing


def _bare(name: str) -> str:
    while name.startswith("network."):
        name = name.removeprefix("network.")
    return name
