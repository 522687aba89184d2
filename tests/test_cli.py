import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


def wsss(*arguments, cwd):
    command = [sys.executable, "-m", "wsss_affinity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_bad_key_is_one_sentence(tmp_path):
    result = wsss("walk.betta=3", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: there is no key 'walk.betta' in the configuration; did you mean 'walk.beta'"
    )
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_root_is_one_sentence(tmp_path):
    result = wsss("experiment=folder", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: data.root is not set; give it on the command line")
    assert "Traceback" not in result.stderr


def test_errors_of_the_data_set_are_one_sentence(tmp_path):
    result = wsss("experiment=folder", "data.root=nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: folder nowhere does not exist; set data.root")
    assert len(result.stderr.splitlines()) == 1


def test_run_reports_and_predict_uses_it(tmp_path):
    sizes = ["data.num_train=4", "data.num_val=2", "data.image_size=48", "data.num_workers=0"]
    fits = [
        f"train_{task}.{option}"
        for task in ("cam", "affinity", "segmentation")
        for option in ("max_epochs=1", "batch_size=2", "transform.crop_size=32")
    ]
    options = [*sizes, *fits, "evaluate.sheet_images=1"]
    result = wsss(*options, "pipeline.per_class=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "pseudo-masks" in result.stdout
    assert "checker" in result.stdout  # per class
    metrics = json.loads((tmp_path / "outputs" / "shapes" / "metrics.json").read_text())
    assert {s["name"] for s in metrics["scores"]} >= {"CAM", "pseudo-masks", "segmentation"}
    assert Image.open(tmp_path / "outputs" / "shapes" / "contact_sheet.png").width > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]

    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "a.jpg")
    Image.fromarray(pixels[:5, :3]).save(photos / "more" / "b.png")
    result = wsss(
        "mode=predict", "predict.images=photos", "predict.masks=m", *options, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "m" / "a.png").size == (41, 30)
    assert Image.open(tmp_path / "m" / "more" / "b.png").size == (3, 5)
    assert Image.open(tmp_path / "m" / "a.png").mode == "P"


def test_template(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "x.png")
    options = ["mode=template", "experiment=folder", "data.root=photos"]
    assert wsss(*options, cwd=tmp_path).returncode == 0
    assert (tmp_path / "photos" / "labels.csv").read_text() == "image,labels\nx.png,\n"
    again = wsss(*options, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize("mode", ["preddict"])
def test_unknown_mode(tmp_path, mode):
    result = wsss(f"mode={mode}", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'predict'?" in result.stderr
