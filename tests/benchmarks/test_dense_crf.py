import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dense_crf.py"


@pytest.mark.parametrize("photographs", [False, True])
def test_compares_the_backends_on_tiny_images(tmp_path, photographs):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    pytest.importorskip("pydensecrf")
    output = tmp_path / "made" / "report.json"
    options = ["--height", "24", "--width", "32", "--labels", "4", "--iterations", "2"]
    options += ["--repeats", "1", "--device", "cpu", "--threads", "1"]
    if photographs:
        for name, size in (("grey.png", (36, 20)), ("wide.png", (50, 30))):
            pixels = np.random.default_rng(0).integers(0, 255, size[::-1], np.uint8)
            Image.fromarray(pixels).resize(size).save(tmp_path / name)
        names = map(str, sorted(tmp_path.glob("*.png")))
        options += ["--shrink", "2", "--objects", "3", "--image", *names]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert report["image"] == ("photographs" if photographs else "made up")
    assert report["iterations"] == 2

    speed = report["speed"]
    assert (speed["height"], speed["width"], speed["labels"]) == (24, 32, 4)
    assert report["device"] == speed["pydensecrf_device"]
    times = speed["pydensecrf_seconds"], speed["torch_seconds"]
    assert min(times) > 0
    assert speed["times_faster_than_pydensecrf"] == pytest.approx(times[0] / times[1])
    assert speed["pairs_per_second"] == pytest.approx((24 * 32) ** 2 * 3 / times[1])

    agreement = report["agreement"]
    assert agreement["objects"] == (3 if photographs else 2)
    rows = agreement["images"]
    sizes = [(row["height"], row["width"]) for row in rows]
    assert sizes == ([(10, 18), (15, 25)] if photographs else [(24, 32)])
    for name in ("after_one_iteration", "after_all"):
        shares = [share for row in rows for share in row[name]]
        assert len(shares) == 2 * len(rows)
        assert 0.9 < min(shares) <= max(shares) <= 1
        assert agreement[name]["mean"] == pytest.approx(sum(shares) / len(shares))
        assert agreement[name]["worst"] == pytest.approx(min(shares))
        worst = f"worst {min(shares):.2%}"
        assert f"same labels {name}: mean" in result.stdout
        assert worst in result.stdout
    assert str(tmp_path) not in output.read_text()
