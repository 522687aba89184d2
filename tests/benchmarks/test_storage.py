import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "storage.py"


def test_compares_both_formats_on_a_few_records(tmp_path, monkeypatch, capsys):
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    spec = importlib.util.spec_from_file_location("storage", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    # importing the package twice more takes longer than the rest
    monkeypatch.setattr(
        script,
        "in_a_fresh_process",
        lambda format, args: script.measure(args.folder / "records", format, args),
    )
    output = tmp_path / "made" / "report.json"
    options = {"images": 30, "size": 700, "reads": 5, "folder": tmp_path, "output": output}
    monkeypatch.setattr("sys.argv", ["storage.py", *(f"--{k}={v}" for k, v in options.items())])
    script.main()

    report = json.loads(output.read_text())
    files, shards = report["formats"]["files"], report["formats"]["shards"]
    # the folder and part_0000 beside the files; the folder, shards, a tar and its index
    assert (files["inodes"], shards["inodes"]) == (32, 4)
    assert files["bytes"] == 30 * 700
    assert shards["bytes"] > 30 * (512 + 1024)  # head and whole blocks of each record
    assert report["files_over_shards"]["inodes"] == 8
    assert "ratio" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
