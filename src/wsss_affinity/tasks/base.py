"""What the three tasks share: parameter groups, the poly schedule, and repeatable epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from wsss_affinity import world
from wsss_affinity.data.dataset import item_seed
from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet

#: What the tasks train: a network with its pretrained part as ``backbone``
Network = CAMNet | AffinityNet | SegmentationNet


@dataclass(frozen=True)
class Optimization:
    """How a network is trained (Ahn & Kwak, CVPR 2018, section 4.1, and their published code).

    Attributes:
        name: An optimizer of ``torch.optim``, in any case: ``"sgd"``, ``"adamw"``, …
        lr: Learning rate of pretrained weights.
        weight_decay: For weights; biases have none.
        head_factor: New layers learn this much faster than pretrained ones.
        bias_factor: Biases learn this much faster than weights.
        poly_power: The rate falls with ``(1 - step / total)^power``.
        options: Further arguments of the optimizer.
    """

    name: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 5e-4
    head_factor: float = 10.0
    bias_factor: float = 2.0
    poly_power: float = 0.9
    options: Mapping[str, Any] = field(default_factory=dict)


def parameter_groups(model: Network, optimization: Optimization) -> list[dict[str, Any]]:
    """Sort the trainable parameters into four groups.

    Pretrained weights learn at ``lr``, pretrained biases at ``bias_factor · lr`` without decay,
    new weights at ``head_factor · lr``, new biases at both factors without decay.

    Args:
        model: With its pretrained part as ``model.backbone``; that counts as pretrained if its
            attribute ``pretrained`` (or the model's) is true.
        optimization: Rates and factors.
    """
    backbone = model.backbone
    pretrained = getattr(model, "pretrained", getattr(backbone, "pretrained", False))
    old = {id(p) for p in backbone.parameters()} if pretrained else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = id(parameter) in old, name.endswith("bias")
            groups.setdefault(key, []).append(parameter)
    result = []
    for (is_old, is_bias), parameters in sorted(groups.items(), reverse=True):
        factor = 1.0 if is_old else optimization.head_factor
        factor *= optimization.bias_factor if is_bias else 1.0
        result.append(
            {
                "params": parameters,
                "lr": factor * optimization.lr,
                "weight_decay": 0.0 if is_bias else optimization.weight_decay,
            }
        )
    return result


def optimizer_class(name: str) -> Any:
    """Find an optimizer of ``torch.optim`` by its name in any case.

    Raises:
        WSSSError: If there is none; near names are in the message.
    """
    known = {
        kind_name.lower(): kind
        for kind_name, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    }
    if name.lower() not in known:
        hint = did_you_mean(name, known)
        raise WSSSError(f"optimizer {name!r} is not one of torch.optim; {hint}")
    return known[name.lower()]


class Task(pl.LightningModule):
    """A network, a loss and its optimization; subclasses say the loss.

    Args:
        model: The network, see :func:`parameter_groups`.
        optimization: How to train it.
        seed: With epoch, step and rank it seeds what is random in the network (dropout), so that a
            resumed run repeats what it would have done.
    """

    def __init__(
        self, model: Network, optimization: Optimization | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.optimization = optimization or Optimization()
        self.seed = seed
        self.save_hyperparameters({"optimization": asdict(self.optimization), "seed": seed})

    def forward(self, images: Tensor) -> Tensor:
        """Apply the network."""
        output: Tensor = self.model(images)
        return output

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map a batch to ``loss`` and any other scalars worth logging.

        Where several processes share a batch, the mean of theirs is to be the value of the whole
        batch: their gradients are averaged.
        """
        raise NotImplementedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed(item_seed(self.seed, self.current_epoch, 1, batch_idx, world.rank()))

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Any]:
        """Compute the loss and log it; ``terms`` are its detached values for the whole batch."""
        terms = self.loss(batch)
        means = world.total(torch.stack(list(terms.values()))) / world.size()
        logged = dict(zip(terms, means.unbind(), strict=True))
        self.log_dict(
            {f"train/{name}": value for name, value in logged.items()},
            on_step=True,
            on_epoch=True,
            batch_size=len(batch["image"]),
        )
        return {"loss": terms["loss"], "terms": logged}

    def configure_optimizers(self) -> Any:
        """Four parameter groups and a poly schedule stepped every batch."""
        settings = self.optimization
        groups = parameter_groups(self.model, settings)
        try:
            optimizer = optimizer_class(settings.name)(groups, lr=settings.lr, **settings.options)
        except (TypeError, ValueError) as error:
            raise WSSSError(
                f"optimizer {settings.name!r} refuses its options ({error}); "
                "see optimization.options"
            ) from error

        def poly(step: int) -> float:
            if step == 0:
                # Lightning sets up the data to count the steps, and asks for this rate before it
                # knows where in the epoch a resumed run goes on
                return 1.0
            total = max(1, int(self.trainer.estimated_stepping_batches))
            return float(max(0.0, 1 - step / total) ** settings.poly_power)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, poly)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
