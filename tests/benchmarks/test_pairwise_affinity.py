import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pairwise_affinity.py"


def test_compares_both_formulations_on_a_tiny_grid(tmp_path):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    output = tmp_path / "made" / "report.json"
    options = ["--batch", "2", "--channels", "3", "--size", "13", "--repeats", "1"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--threads", "1", "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert (report["batch"], report["channels"], report["size"]) == (2, 3, 13)
    assert report["device"]
    assert report["loss_difference"] < 1e-5
    assert report["gradient_difference"] < 1e-5
    gather, ours = report["formulations"]["gather"], report["formulations"]["ours"]
    assert report["times_faster"] == gather["seconds"] / ours["seconds"]
    if sys.platform == "linux":  # nothing else tells the memory of a process
        assert gather["peak_memory_mib"] > 0
        assert ours["peak_memory_mib"] > 0
    assert f"{report['times_faster']:.1f}x faster" in result.stdout
