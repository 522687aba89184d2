import importlib.util
import json
import mmap
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "common.py"
# named by their device; the others are of disks and memory
RESULTS = sorted((SCRIPT.parent / "results").glob("*_c[pu][ud]*.json"))


@pytest.fixture(scope="module")
def common():
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    spec = importlib.util.spec_from_file_location("benchmarks_common", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_takes_the_fastest_run_after_the_warm_up(common):
    naps = iter([0.0, 0.06, 0.03, 0.09])
    took = common.seconds(lambda: time.sleep(next(naps)), 3, "cpu")
    assert 0.03 <= took < 0.06
    assert next(naps, None) is None


def test_fits_an_exponent(common):
    sizes = [1, 10, 50, 400]
    assert common.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_measures_the_peak_of_memory(common):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the memory of a process")
    common.reset_peak("cpu")
    before = common.held_mib("cpu")
    assert before > 0
    assert common.peak_mib("cpu") < before + 16
    with mmap.mmap(-1, 64 * 2**20) as block:  # never from what an allocator had kept
        for _ in range(64):
            block.write(bytes(2**20))
    assert common.held_mib("cpu") < before + 16
    assert before + 60 < common.peak_mib("cpu") < before + 80
    common.reset_peak("cpu")
    assert common.peak_mib("cpu") < before + 16


def test_reads_the_number_of_a_fresh_process(common, tmp_path):
    script = tmp_path / "sum.py"
    script.write_text("import sys\nprint(sum(map(float, sys.argv[1:])))\n")
    assert common.in_fresh_process(str(script), 2, 0.5) == 2.5


def test_a_fresh_process_tells_its_errors(common, tmp_path, capfd):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('the reason')")
    with pytest.raises(subprocess.CalledProcessError):
        common.in_fresh_process(str(script))
    assert "the reason" in capfd.readouterr().err


def test_writes_a_report_to_its_place(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.write({"a": 1}, "walk_cpu", None)
    common.write({"a": 2}, "walk_cpu", tmp_path / "made" / "other.json")
    assert json.loads((tmp_path / "results" / "walk_cpu.json").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "made" / "other.json").read_text()) == {"a": 2}


def test_tells_device_and_versions(common, capsys):
    about = common.surroundings("cpu")
    assert list(about) == ["device", "threads", "torch", "python", "triton", "llvmlite"]
    assert about["device"]
    assert about["device"] in capsys.readouterr().out


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_report_tells_them(common, path):
    missing = set(common.surroundings("cpu")) - set(json.loads(path.read_text()))
    assert not missing, f"measure {path.name} anew: it does not tell {sorted(missing)}"


def test_there_is_a_report_of_every_script():
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    scripts = {
        path.stem for path in SCRIPT.parent.glob("*.py") if "write(report," in path.read_text()
    }
    assert len(scripts) == 5
    assert {path.stem for path in RESULTS} >= {f"{name}_cpu" for name in scripts}
