import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wsss_affinity.layers import walk_llvm

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "walk_products.py"


def test_compares_both_products_and_walks(tmp_path, monkeypatch):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    if not torch.backends.mkl.is_available():
        pytest.skip("no CSR products in this torch")
    output = tmp_path / "made" / "report.json"
    options = ["--channels", "24", "--repeats", "1", "--threads", "1"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", output],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(output.read_text())
    assert list(report["grids"]) == ["VOC/8", "VOC/4", "2048x1024/8"]
    for row in report["grids"].values():
        assert row["csr_seconds"] > 0
        ratio = row["shifted_seconds"] / row["csr_seconds"]
        assert row["times_faster"] == pytest.approx(ratio)
        assert row["largest_difference"] < 1e-5
        assert f"{ratio:.1f}x" in result.stdout
        walk = row["walk"]
        assert walk["products_seconds"] > 0
        assert walk["largest_difference"] < 1e-5
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        compiled = walk_llvm.available(torch.zeros(1, 2, 2, 24), 5)
        assert (walk["llvm_seconds"] is not None) == compiled
        if compiled:
            ratio = walk["products_seconds"] / walk["llvm_seconds"]
            assert walk["times_faster"] == pytest.approx(ratio)
            assert f"{ratio:.2f}x" in result.stdout
