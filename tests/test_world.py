import json
import sys

import torch

from wsss_affinity import world
from wsss_affinity.pipeline import launch

TOGETHER = """
import json, os, sys
import torch
from wsss_affinity import world

world.join(torch.device("cpu"))
rank = world.rank()
found = {
    "rank": rank,
    "size": world.size(),
    "broadcast": world.broadcast({"from": rank}),
    "total": world.total(torch.tensor([1.5, rank])).tolist(),
    "either": world.either(False, rank == 1, rank == 0),
}
world.barrier()
world.leave()
found["after"] = world.rank(), world.size(), world.joined()
with open(sys.argv[1] + str(rank), "w") as file:
    json.dump(found, file)
"""


def test_alone():
    assert (world.rank(), world.size(), world.joined()) == (0, 1, False)
    world.barrier()
    assert world.broadcast("a") == "a"
    assert world.either(True, False) == (True, False)
    value = torch.ones(2, requires_grad=True)
    total = world.total(value)
    assert total.tolist() == [1, 1]
    assert not total.requires_grad


def test_two_processes(tmp_path):
    assert launch._run(2, [sys.executable, "-c", TOGETHER, f"{tmp_path}/"]) == 0
    for rank in range(2):
        assert json.loads((tmp_path / str(rank)).read_text()) == {
            "rank": rank,
            "size": 2,
            "broadcast": {"from": 0},
            "total": [3.0, 1.0],
            "either": [False, True, True],
            "after": [0, 1, False],
        }
