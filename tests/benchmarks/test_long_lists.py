import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "long_lists.py"
NUMBER = 50


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    spec = importlib.util.spec_from_file_location("long_lists", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_sees_every_image(script, tmp_path):
    assert script.prepare(tmp_path, NUMBER) == NUMBER
    assert [part(tmp_path, NUMBER) for part in script.READERS] == [NUMBER] * 2
    listed = script.samples(tmp_path, NUMBER)
    found = {part.__name__: part(listed, tmp_path) for part in script.PARTS}
    assert len(found) == 6
    assert set(found.values()) == {NUMBER}


def test_what_is_measured(script, tmp_path):
    script.prepare(tmp_path, NUMBER)
    row = script.measure("fingerprint", tmp_path, NUMBER)
    assert row.keys() == {"seconds", "cpu_seconds", "peak_mib", "libraries_mib"}
    assert 0 < row["cpu_seconds"] < 60
    assert 0 < row["libraries_mib"] <= row["peak_mib"]
    with pytest.raises(AssertionError):
        # a part that left images out is no measurement
        script.measure("by_folder", tmp_path, NUMBER + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in bytes elsewhere")
def test_memory_is_in_mebibytes(script):
    assert 10 < script.peak_mib() < 100_000
