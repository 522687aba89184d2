import json
import os
import socket

import pytest
import torch
from omegaconf import OmegaConf


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def add_artifact():
    """Makes artefacts of one file, named like their inputs by ``<stage>/<key>``."""
    from wsss_affinity.pipeline.artifact import ArtifactStore

    def add(output, name, *inputs, config=None, metrics=None, size=100):
        stage, key = name.split("/")

        def build(work):
            (work / "weights.pt").write_bytes(os.urandom(size))
            return metrics or {}

        read = dict(n.split("/") for n in inputs)
        describe = {"config": config or {}, "inputs": read, "data": {"classes": ["cat"]}}
        return ArtifactStore(output / "artifacts").make(stage, key, build, describe)[0]

    return add


@pytest.fixture
def add_run():
    """Makes folders of runs; ``artifacts`` holds made and seconds by ``<stage>/<key>``."""

    def add(folder, overrides=(), artifacts=None, *, scores=None, objective=None, **options):
        (folder / ".hydra").mkdir(parents=True)
        hydra = {"hydra": {"runtime": {"choices": options.pop("choices", {})}}}
        config = options.pop("config", {})
        files = {"overrides": list(overrides), "config": config, "hydra": hydra}
        for name, content in files.items():
            OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")
        status = {"state": "done", "stage": "make_cam", "error": None, "pid": os.getpid()}
        status |= {"host": socket.gethostname(), **options}
        (folder / "status.json").write_text(json.dumps(status))
        stages = {
            name.split("/")[0]: {"artifact": f"x/{name}", "made": made, "wall_time_s": seconds}
            for name, (made, seconds) in (artifacts or {}).items()
        }
        told = [{"name": n, "miou": m, "saw_masks": n.endswith("best")} for n, m in scores or ()]
        worth = objective and {"name": objective[0], "value": objective[1]}
        content = {"objective": worth, "scores": told, "stages": stages}
        (folder / "metrics.json").write_text(json.dumps(content))

    return add
