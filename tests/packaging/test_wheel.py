"""What a user gets who installs the built wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_of_layers_needs_neither_lightning_nor_hydra():
    program = (
        "import sys, wsss_affinity, wsss_affinity.layers, wsss_affinity.losses;"
        "assert not {'pytorch_lightning', 'hydra', 'omegaconf', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_exist():
    import wsss_affinity as wa

    assert [name for name in wa.__all__ if not hasattr(wa, name)] == []
    assert set(wa.__all__) <= set(dir(wa))
    with pytest.raises(AttributeError, match="no attribute 'AffinitiyNet'"):
        _ = wa.AffinitiyNet


def test_sdist_and_wheel_hold_the_configuration(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)  # the wheel is built from the sdist
    wheel = next(tmp_path.glob("*.whl"))
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    shipped = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    packed = unpacked / "wsss_affinity" / "conf"
    assert {p.relative_to(packed) for p in packed.rglob("*.yaml")} == shipped
    assert (unpacked / "wsss_affinity" / "py.typed").is_file()

    program = (
        "import wsss_affinity, pathlib; from wsss_affinity.config import config_dir, load_config;"
        f"assert config_dir() == pathlib.Path({str(packed)!r}).resolve(), config_dir();"
        "print(load_config(['experiment=folder', 'sweep=search']).name);"
        "from hydra.core.plugins import Plugins; from hydra.plugins.sweeper import Sweeper;"
        "found = [c.__module__ for c in Plugins.instance().discover(Sweeper)];"
        "assert 'hydra_plugins.wsss_affinity_optuna' in found, found"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"},
    )
    assert result.stdout.strip() == "folder", result.stderr
