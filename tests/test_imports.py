"""What an import brings in: counted in modules, since times depend on the machine."""

import json
import subprocess
import sys

import pytest

#: what takes its time to import
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "segmentation_models_pytorch",
    "pytorch_lightning",
    "torchmetrics",
    "hydra",
    "omegaconf",
    "matplotlib",
    "scipy",
)


def imported(statement):
    program = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["wsss_affinity", "wsss_affinity.pipeline"])
def test_importing_the_package_brings_in_nothing_heavy(module):
    assert imported(f"import {module}") & set(HEAVY) == set()


@pytest.mark.parametrize("module", ["layers", "losses"])
def test_layers_and_losses_need_torch_alone(module):
    assert imported(f"import wsss_affinity.{module}") & set(HEAVY) == {"torch"}


@pytest.mark.parametrize("name", ["backbones", "models"])
def test_the_lowest_floor_needs_neither_lightning_nor_hydra(name):
    found = imported(f"import wsss_affinity.{name}")
    upper = {"pytorch_lightning", "torchmetrics", "hydra", "omegaconf"}
    assert found & upper == set()
    # these belong to the segmentation network and to backbones of timm
    assert found & {"timm", "segmentation_models_pytorch"} == set()


def test_the_segmentation_network_needs_no_lightning_either():
    found = imported("from wsss_affinity import SegmentationNet")
    assert "segmentation_models_pytorch" in found
    assert found & {"pytorch_lightning", "hydra", "omegaconf"} == set()
