import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "random_walk.py"


@pytest.mark.slow
def test_reports_every_claim_on_tiny_grids(tmp_path):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    output = tmp_path / "made" / "report.json"
    options = ["--quick", "--channels", "2", "--repeats", "1", "--threads", "1"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert report["device"]
    assert report["channels"] == 2

    assert list(report["against_dense"]) == ["VOC/8", "VOC/4"]
    for row in report["against_dense"].values():
        assert (row["batch"], row["squarings_timed"]) == (1, 8)
        assert row["reference"] == "dense in float64"
        for method in ("power", "chebyshev"):
            assert row[method]["largest_difference"] < 1e-4
            ratio = row["dense_seconds"] / row[method]["seconds"]
            assert row[method]["times_faster_than_dense"] == pytest.approx(ratio)

    assert [row["batch"] for row in report["batches"]] == [1, 2]
    assert all(row["power_seconds_an_image"] > 0 for row in report["batches"])
    assert [row["pixels"] for row in report["pixels"]["grids"]] == [42, 72, 240]
    assert all(row["seconds"] > 0 for row in report["pixels"]["grids"])
    assert report["steps"]["steps"] == [4, 16]
    gradients = [(row["num_steps"], row["method"]) for row in report["gradients"]]
    assert gradients == [(4, "power"), (4, "chebyshev"), (16, "power"), (16, "chebyshev")]
    for row in report["gradients"]:
        assert min(row["forward_and_backward_seconds"], row["forward_seconds"]) > 0
        assert row["peak_memory_mib"] >= 0 or sys.platform != "linux"

    roofline = report["roofline"]
    assert (roofline["batch"], roofline["grid"]) == (2, [6, 7])
    # 256 products for 84 pixels of two channels with 68 neighbours and themselves
    assert roofline["power"]["multiply_adds"] == 256 * 84 * 2 * 69
    assert roofline["power"]["bytes_needed"] == 4 * 84 * (34 + 2 * 2)
    assert roofline["chebyshev"]["products"] < 100
    for method in ("power", "chebyshev"):
        took = 2 * report["batches"][-1][f"{method}_seconds_an_image"]
        assert roofline[method]["seconds"] == pytest.approx(took)
        assert 0 < roofline[method]["share_of_roofline"] < 1
        assert f"{method}: {roofline[method]['multiply_adds']:.2e} multiply-adds" in result.stdout
