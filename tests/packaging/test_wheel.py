"""What a user gets who installs the built wheel."""

import subprocess
import sys
import sysconfig
import venv
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


APP = {
    "app.py": """
import hydra
from wsss_affinity import run_pipeline


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg):
    cfg.train_cam.max_epochs = 1
    result = run_pipeline(cfg)
    import wsss_affinity

    print(cfg.greeting, cfg.name, cfg.backbone.name, wsss_affinity.__file__)
    print(result.score("CAM")["images"], list(result.stages), result.stages["make_cam"].path)


main()
""",
    "conf/app.yaml": """
defaults:
  - config
  - _self_
  - override data: mine
  - override experiment: quick
greeting: hello
""",
    "conf/data/mine.yaml": """
defaults: [shapes]
num_train: 6
num_val: 2
image_size: 48
num_workers: 0
""",
    "conf/experiment/quick.yaml": """
# @package _global_
defaults:
  - override /backbone: tiny
name: quick
pipeline: {stages: [train_cam, make_cam, evaluate]}
train_cam: {output_stride: 8, batch_size: 2, transform: {crop_size: 32}}
cam: {scales: [1.0]}
trainer: {accelerator: cpu}
""",
}


@pytest.mark.slow
def test_an_application_of_its_own_lists_our_groups(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--no-deps", wheel], check=True)
    # what the tests run with lends the rest; no .pth file of it is read, so no editable install
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    (Path(site.stdout.strip()) / "lent.pth").write_text(sysconfig.get_paths()["purelib"])
    for name, text in APP.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    result = subprocess.run(
        [python, "app.py", f"output_dir={tmp_path}/out"],
        capture_output=True,
        text=True,
        cwd=tmp_path / "app",
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    lines = result.stdout.splitlines()[-2:]
    assert result.returncode == 0, result.stderr
    assert lines[0].startswith(f"hello quick tiny {tmp_path}/venv/")
    assert lines[1].startswith(f"6 ['train_cam', 'make_cam', 'evaluate'] {tmp_path}/out/artifacts/")
