import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "random_walk.py"


def test_reports_every_method_on_a_tiny_grid(tmp_path):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    output = tmp_path / "made" / "report.json"
    options = ["--height", "6", "--width", "7", "--channels", "2", "--repeats", "1"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert (report["height"], report["width"], report["channels"]) == (6, 7, 2)
    assert report["device"]
    assert list(report["methods"]) == ["dense", "power", "chebyshev"]
    for method, row in report["methods"].items():
        assert method in result.stdout
        assert row["seconds"] > 0
        assert row["largest_difference"] < 1e-4
        assert row["peak_memory_mib"] >= 0
    assert report["methods"]["dense"]["times_faster_than_dense"] == 1
