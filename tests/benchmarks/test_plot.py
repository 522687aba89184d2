import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "plot.py"


def draw(images):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    pytest.importorskip("matplotlib")
    options = ["--images", str(images)]
    subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True)
    return {path.name: path.read_text() for path in images.iterdir()}


def test_draws_the_committed_results(tmp_path):
    drawn = draw(tmp_path / "images")
    assert {"random_walk_cpu.svg", "label_making_cpu.svg"} <= set(drawn)
    texts = {
        name: "\n".join("".join(element.itertext()) for element in ET.fromstring(svg).iter())
        for name, svg in drawn.items()
    }
    walk = texts["random_walk_cpu.svg"]
    assert "dense, the published way" in walk
    assert "2048x1024/4" in walk
    label_making = texts["label_making_cpu.svg"]
    assert "activation maps" in label_making
    assert "published" in label_making
    assert max(map(len, drawn.values())) < 100_000


def test_the_figures_in_the_docs_are_drawn_by_it(tmp_path):
    drawn = draw(tmp_path / "images")
    page = (ROOT / "docs" / "performance.md").read_text()
    for name, svg in drawn.items():
        assert f"(images/{name})" in page
        committed = (ROOT / "docs" / "images" / name).read_text()
        assert texts(committed) == texts(svg), f"draw {name} anew: python benchmarks/plot.py"
        # other versions of matplotlib place things otherwise
        if version(committed) == version(svg):
            assert committed == svg, f"draw {name} anew: python benchmarks/plot.py"


def texts(svg):
    """The labels and numbers of a figure, in their order."""
    found = [
        "".join(element.itertext()).strip()
        for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert len(found) > 10
    return found


def version(svg):
    return re.search(r"Matplotlib v[\w.]+", svg).group()
