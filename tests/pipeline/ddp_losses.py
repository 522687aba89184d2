"""Trains the three networks for a few steps and writes every loss: `ddp_losses.py FOLDER DEVICES`.

FOLDER holds images and masks, and gets ``losses<DEVICES>.json`` and, for each task and precision,
the weights.
"""

import json
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from torch import nn

from wsss_affinity import world
from wsss_affinity.config import load_config
from wsss_affinity.data import Sample, TrainTransform, WSSSDataModule
from wsss_affinity.data.images import load_mask
from wsss_affinity.models import AffinityNet, CAMNet
from wsss_affinity.pipeline.fit import fit
from wsss_affinity.pipeline.launch import joined
from wsss_affinity.tasks import AffinityTask, CAMTask, Optimization, SegmentationTask

FIXED = {"freeze_batchnorm": True}


class SmallNet(nn.Module):
    """A segmentation network without BatchNorm, whose statistics are each process's own."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.head(torch.relu(self.backbone(images)))


TASKS = {
    "cam": lambda o: CAMTask(CAMNet("tiny", 3, dropout=0.0, **FIXED), o),
    "affinity": lambda o: AffinityTask(AffinityNet("tiny", radius=3, **FIXED), o),
    "segmentation": lambda o: SegmentationTask(SmallNet(), o),
}


def read_mask(sample):
    return load_mask(sample.image.with_suffix(".mask.png"))


def train(folder, devices):
    images = [p for p in sorted(folder.glob("*.png")) if ".mask" not in p.name]
    samples = [Sample(p.stem, p, (i % 3,)) for i, p in enumerate(images)]
    losses = {}
    for (name, make), precision in product(TASKS.items(), ("32-true", "64-true")):
        torch.manual_seed(0)
        task = make(Optimization("sgd", lr=0.005))
        transform = TrainTransform(32, (0.5,) * 3, (0.25,) * 3, long_side=(32, 40))
        data = WSSSDataModule(
            samples, 3, transform, batch_size=4, read_target=read_mask, num_workers=0
        )
        options = {"accelerator": "cpu", "devices": devices, "precision": precision}
        steps = losses[f"{name} {precision}"] = []
        own = folder / f"{name} {precision} {devices}"
        with noted(task, steps):
            metrics = fit(name, task, data, own, max_epochs=5, trainer=options)
        losses[f"{name} {precision} epochs"] = metrics["epochs"]
        if world.rank() == 0:
            (own / "weights.pt").rename(folder / f"{name} {precision} {devices}.pt")
    if world.rank() == 0:
        (folder / f"losses{devices}.json").write_text(json.dumps(losses))


@contextmanager
def noted(task, steps):
    """Keep the terms of every step."""
    training_step = task.training_step

    def step(*arguments):
        result = training_step(*arguments)
        steps.append({name: float(value) for name, value in result["terms"].items()})
        return result

    task.training_step = step
    yield
    del task.training_step


if __name__ == "__main__":
    chosen = int(sys.argv[2])
    with joined(load_config(["trainer.accelerator=cpu", f"trainer.devices={chosen}"])):
        train(Path(sys.argv[1]), chosen)
