"""Each cell of the table of docs/pytorch.md about compiling, exporting and scripting is tried."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import wsss_affinity as wa

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"
IMAGES = (2, 3, 64, 96)


class Wrapped(nn.Module):
    """What is exported must be a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = wa.AffinityNet("tiny")

    def forward(self, images):
        return self.net.features(images)


def affinity_inputs():
    return torch.rand(2, 34, 6, 8), torch.randint(3, (2, 6, 8))


def walk_inputs():
    return torch.rand(2, 3, 6, 8), torch.rand(2, 34, 6, 8)


def crf_inputs():
    return torch.randint(256, (6, 8, 3), dtype=torch.uint8), torch.rand(3, 6, 8).softmax(0)


#: what makes each of them, and its inputs
ROWS = {
    "CAMNet": (lambda: wa.CAMNet("tiny", num_classes=3).eval(), lambda: (torch.randn(IMAGES),)),
    "SegmentationNet": (
        lambda: wa.SegmentationNet(4, encoder="tiny").eval(),
        lambda: (torch.randn(IMAGES),),
    ),
    "AffinityNet.features": (lambda: Features().eval(), lambda: (torch.randn(IMAGES),)),
    "pairwise_affinity": (lambda: wa.pairwise_affinity, lambda: (torch.randn(2, 4, 6, 8),)),
    "affinity_loss": (lambda: wa.affinity_loss, affinity_inputs),
    "random_walk": (lambda: wa.random_walk, walk_inputs),
    "DenseCRF": (lambda: wa.DenseCRF(num_iterations=2), crf_inputs),
}


def exported(function, inputs, **options):
    module = function if isinstance(function, nn.Module) else Wrapped(function)
    return torch.export.export(module, inputs, **options).module()


def compiled(function, inputs, **options):
    return torch.compile(function, backend="eager", **options)


WAYS = {
    "torch.compile": compiled,
    "torch.export": exported,
    "torch.jit.trace": lambda function, inputs: torch.jit.trace(function, inputs),
    "torch.jit.script": lambda function, inputs: torch.jit.script(function),
}


def cells():
    """Name, way and what the page says of them."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    head, _, *body = ([c.strip() for c in line.strip("|").split("|")] for line in rows)
    for names, *said in body:
        for name in re.findall(r"`([^`]+)`", names):
            yield from zip([name] * len(said), (c.strip("`") for c in head[1:]), said, strict=True)


def check(name, way, **options):
    """What comes out of it is what comes of the function itself, for other inputs of the shape."""
    torch.compiler.reset()
    make, draw = ROWS[name]
    function = make()
    with torch.no_grad():
        other = WAYS[way](function, draw(), **options)
        inputs = draw()
        torch.testing.assert_close(other(*inputs), function(*inputs), atol=1e-4, rtol=1e-4)


def test_the_table_has_each_of_them():
    assert {(name, way) for name, way, _ in cells()} == {(n, w) for n in ROWS for w in WAYS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "way", "said"), list(cells()))
def test_cell(name, way, said):
    if said == "no" or said.startswith("no:"):
        with pytest.raises(Exception):  # noqa: B017, PT011 each its own
            check(name, way)
    elif "graph break" in said or "call it outside" in said:
        check(name, way)
        with pytest.raises(torch._dynamo.exc.Unsupported):
            check(name, way, fullgraph=True)
    elif said == "with `strict=False`":
        check(name, way, strict=False)
    elif way == "torch.compile":
        assert said == "yes"
        check(name, way, fullgraph=True)
    else:
        assert said in ("yes", "for one size")
        check(name, way)
