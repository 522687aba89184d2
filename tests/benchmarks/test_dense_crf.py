import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dense_crf.py"


@pytest.mark.parametrize("photograph", [False, True])
def test_compares_the_backends_on_a_tiny_image(tmp_path, photograph):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    output = tmp_path / "made" / "report.json"
    options = ["--height", "24", "--width", "32", "--labels", "3", "--iterations", "2"]
    options += ["--repeats", "1", "--device", "cpu"]
    if photograph:
        pixels = np.random.default_rng(0).integers(0, 255, (9, 12), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "grey.png")
        options += ["--image", str(tmp_path / "grey.png")]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert (report["height"], report["width"], report["labels"]) == (24, 32, 3)
    assert report["image"] == ("photograph" if photograph else "made up")
    assert report["device"] == report["pydensecrf_device"]
    times = report["pydensecrf_seconds"], report["torch_seconds"]
    assert min(times) > 0
    assert report["times_faster_than_pydensecrf"] == pytest.approx(times[0] / times[1])
    assert report["pairs_per_second"] == pytest.approx((24 * 32) ** 2 * 3 / times[1])
    assert report["same_labels"] > 0.9
    assert 0 < report["mean_difference"] < 0.1
    assert f"{report['same_labels']:.2%} of the pixels" in result.stdout
