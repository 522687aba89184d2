"""One of two processes that share map stages: `map_rank.py FOLDER`."""

import sys
from pathlib import Path

import torch

from wsss_affinity import interrupt, world
from wsss_affinity.data.source import Sample
from wsss_affinity.pipeline.mapping import map_images, map_samples
from wsss_affinity.pipeline.storage import Records, record_writer

SAMPLES = [Sample(f"s{i}", Path("x"), (i,)) for i in range(5)]


def load(sample):
    if sample.id == "s3":
        raise ValueError("s3 is bad")
    return sample.labels[0]


def square(sample):
    return sample.labels[0] ** 2


def finish(sample, number):
    return {"": str(number).encode()}


def make(folder, samples, work, num_workers=1):
    writer = record_writer(folder, f"-{world.rank()}", "files")
    options = {"output": {"": writer}, "num_workers": num_workers, "skip": True}
    problems = map_images("stage", samples, load, work, finish, **options)
    squares = [result for _, result in map_samples("squares", samples, square, num_workers=1)]
    print([(p.id, p.message) for p in problems], squares)


def with_shards(folder):
    """Each process reads what both have just stored."""
    writer = record_writer(folder, ".txt", "shards")
    options = {"output": {"": writer}, "num_workers": 0, "skip": True}
    map_images("stage", SAMPLES, load, None, finish, **options)
    records = Records(folder, ".txt")
    print([records.read(sample.id) for sample in SAMPLES if sample.id in records])


def stop_the_first(sample, number):
    if world.rank() == 0:
        interrupt._requested.set()
    return number


if __name__ == "__main__":
    root = Path(sys.argv[1])
    world.join(torch.device("cpu"))
    make(root / "five", SAMPLES, None)
    make(root / "one", SAMPLES[:1], None)
    with_shards(root / "sharded")
    try:
        make(root / "stopped", SAMPLES, stop_the_first, num_workers=0)
    except interrupt.Interrupted:
        sys.exit(interrupt.RESUMABLE)
