"""The layers in DistributedDataParallel; started as a script, this file is one of its processes."""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsss_affinity.layers import pairwise_affinity, random_walk
from wsss_affinity.losses import affinity_loss

PROCESSES = 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1, bias=False)  # affinities do not feel it
        self.scores = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        affinity = pairwise_affinity(self.features(images), radius=3)
        return random_walk(self.scores(images), affinity, radius=3, num_steps=32), affinity


def gradients(wrap, part):
    """Gradients of a loss on part of a batch, parameter by parameter."""
    torch.manual_seed(0)
    net = wrap(Net().double())
    images = torch.randn(4, 3, 6, 7, dtype=torch.float64)[part]
    # the same in every image: the loss is a mean over the pairs of a batch, not over images
    labels = torch.randint(3, (1, 6, 7)).expand(len(images), -1, -1)
    walked, affinity = net(images)
    loss = affinity_loss(affinity, labels, radius=3)["loss"] + walked.square().mean()
    loss.backward()
    return {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}


def work(rank, store, result):
    dist.init_process_group("gloo", f"file://{store}", world_size=PROCESSES, rank=rank)
    found = gradients(DistributedDataParallel, slice(2 * rank, 2 * rank + 2))
    torch.save(found, f"{result}{rank}")
    dist.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    arguments = [str(tmp_path / "store"), str(tmp_path / "gradients")]
    # where the tests run several at once, threads would only be in each other's way
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), *arguments], env=environment)
        for rank in range(PROCESSES)
    ]
    expected = gradients(lambda net: net, slice(None))
    own = gradients(lambda net: net, slice(2))
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * PROCESSES
    finally:
        for process in processes:
            process.kill()
    for rank in range(PROCESSES):
        found = torch.load(f"{arguments[1]}{rank}")
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for name in expected:
        # the first process alone would find something else
        assert (own[name] - expected[name]).abs().max() > 1e-3
        assert expected[name].abs().max() > 1e-2


if __name__ == "__main__":
    work(int(sys.argv[1]), *sys.argv[2:])
