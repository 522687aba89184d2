import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "label_making.py"
PARTS = {
    "make_cam": ["read", "maps", "write"],
    "affinity_labels": ["read", "dense CRFs", "write"],
    "random_walk": ["read", "affinities", "walk", "write", "dense CRF"],
}


def test_times_every_part_on_tiny_pictures(tmp_path):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    pytest.importorskip("pydensecrf")
    output = tmp_path / "made" / "report.json"
    options = ["--backbone", "tiny", "--output-stride", "8", "--height", "48", "--width", "64"]
    options += ["--images", "2", "--repeats", "2", "--threads", "1", "--published"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert (report["backbone"], report["height"], report["width"]) == ("tiny", 48, 64)
    assert (report["images"], report["repeats"], report["threads"]) == (2, 2, 1)
    assert report["device"]
    assert report["torch"]
    assert report["python"]
    assert 1 <= report["classes_an_image"] <= 3

    assert {stage: list(parts) for stage, parts in report["stages"].items()} == PARTS
    rows = [row for parts in report["stages"].values() for row in parts.values()]
    assert min(row["seconds_an_image"] for row in rows) > 0
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    total = sum(row["seconds_an_image"] for row in rows)
    assert report["seconds_an_image"] == pytest.approx(total)
    assert report["images_a_second"] == pytest.approx(1 / total)
    for row in rows:
        assert row["share"] == pytest.approx(row["seconds_an_image"] / total)
    assert f"{report['images_a_second']:.3f} images a second" in result.stdout

    row = report["published"]
    walk = report["stages"]["random_walk"]["walk"]["seconds_an_image"]
    assert row["walk_times_faster"] == pytest.approx(row["walk_seconds_an_image"] / walk)
    whole = report["images_a_second"] / row["images_a_second"]
    assert row["whole_times_faster"] == pytest.approx(whole)
    assert row["same_labels"] > 0.99
    assert f"{row['walk_times_faster']:.1f}x faster" in result.stdout
