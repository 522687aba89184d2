"""The Python of the documentation runs, block after block in one namespace; commands compose."""

import re
import shlex
import sys
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

import wsss_affinity
from wsss_affinity import SegmentationNet, compare
from wsss_affinity.backbones import registry
from wsss_affinity.config import (
    CONFIG_NAME,
    VERSION_BASE,
    check_overrides,
    config_dir,
    load_config,
)
from wsss_affinity.data.shapes import SHAPES_CLASSES, draw

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
)
#: commands that cannot be composed, and why
NOT_COMPOSED = {
    "backbone=my_net": "the plug-in that it is about is not installed",
}
#: what makes a run of the pipeline last seconds
SMALL = (
    "backbone=tiny",
    "data.num_workers=0",
    "cam.scales=[1.0]",
    "train_cam.output_stride=8",
    "train_cam.transform.long_side=null",
    *(f"train_{name}.max_epochs=1" for name in ("cam", "affinity", "segmentation")),
    *(f"train_{name}.batch_size=2" for name in ("cam", "affinity", "segmentation")),
    *(f"train_{name}.transform.crop_size=32" for name in ("cam", "affinity", "segmentation")),
    "evaluate.sheet_images=1",
    "trainer.accelerator=cpu",
)
SMALL_SHAPES = ("data.num_train=4", "data.num_val=2", "data.image_size=48")


def blocks(path, language="python"):
    """Code and line of each block that holds a language."""
    text = (ROOT / path).read_text(encoding="utf-8")
    pattern = rf"^( *)```{language}\n(.*?)^\1```$"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        yield match[2], text.count("\n", 0, match.start(2))


def run(path, chosen, namespace):
    for code, line in chosen:
        # errors name the file and the line
        exec(compile("\n" * line + code, ROOT / path, "exec"), namespace)


def photographs(folder, count):
    """Pictures of 48 pixels, and the table of their labels."""
    folder.mkdir()
    rows = ["image,labels"]
    for i in range(count):
        pixels, _, objects = draw(np.random.default_rng(i), 48)
        Image.fromarray(pixels).save(folder / f"{chr(97 + i)}.jpg")
        labels = sorted({SHAPES_CLASSES[k] for k in objects})
        rows.append(f"{chr(97 + i)}.jpg,{' '.join(labels)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with photographs, where whatever is composed is small."""

    def load(overrides=()):
        shapes = not any("data" in o.split("=")[0] for o in overrides)
        backbone = any(o.startswith("backbone") for o in overrides)
        less = [o for o in SMALL if not (backbone and o == "backbone=tiny")]
        return load_config([*overrides, *less, *(SMALL_SHAPES if shapes else ())])

    monkeypatch.chdir(tmp_path)
    # the blocks look it up in the package, which finds its names when they are asked for
    monkeypatch.setattr(wsss_affinity, "load_config", load)
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    photographs(tmp_path / "photos", 4)
    return tmp_path


def test_code_of_pytorch_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "docs/pytorch.md"
    chosen = [b for b in blocks(path) if not b[0].startswith("# onnx")]
    assert len(chosen) >= 8
    run(path, chosen, {"__name__": "__main__"})


@pytest.mark.parametrize("path", ["README.md", "docs/start.md", "docs/howto/python.md"])
def test_code_that_runs_the_pipeline(path, small):
    chosen = list(blocks(path))
    assert len(chosen) >= 2
    namespace = {"__name__": "__main__"}
    run(path, chosen, namespace)
    assert namespace["result"].stages["train_segmentation"].path.is_dir()
    if path == "docs/start.md":
        assert len(list((small / "look").glob("*.png"))) == 4


def test_code_of_backbone_runs(small, monkeypatch):
    """But for the run of the pipeline, which tests/packaging/test_plugin.py makes."""
    path = "docs/howto/backbone.md"
    chosen = [b for b in blocks(path) if "run_pipeline" not in b[0]]
    assert len(chosen) >= 5
    page = ModuleType("page")  # pickle looks the class up in its module
    monkeypatch.setitem(sys.modules, "page", page)
    run(path, chosen, vars(page))
    contract = page.TestMyNet()
    tests = [name for name in dir(contract) if name.startswith("test_")]
    assert len(tests) >= 13
    for name in tests:
        getattr(contract, name)()


def test_code_of_attention_runs(small):
    run("docs/howto/attention.md", list(blocks("docs/howto/attention.md")), namespace := {})
    assert namespace["affinity"].shape == (1, 34, 4, 6)
    assert namespace["walked"].shape == (1, 3, 4, 6)


def test_code_of_cams_runs(small):
    (small / "psa_cams").mkdir()
    maps = {0: np.zeros((4, 6), np.float32)}
    np.save(small / "psa_cams" / "a.npy", maps, allow_pickle=True)
    path = "docs/howto/cams.md"
    run(path, list(blocks(path)), {})
    found = sorted(file.name for file in (small / "their_cams").iterdir())
    assert found == ["a.npz", "cat1.npz"]


def test_code_of_predict_runs(small):
    photographs(small / "other_photos", 1)
    (small / "network").mkdir()
    net = SegmentationNet(3, encoder="tiny")
    torch.save(net.state_dict(), small / "network" / "weights.pt")
    (small / "network" / "network.json").write_text(
        '{"classes": ["cat", "dog"], "background": true, "architecture": "DeepLabV3Plus",'
        ' "encoder": "tiny", "max_side": null}'
    )
    path = "docs/howto/predict.md"
    run(path, list(blocks(path)), namespace := {})
    with Image.open("other_photos/a.jpg") as photo:
        assert namespace["labels"].shape == photo.size[::-1]
    assert namespace["names"] == ["background", "cat", "dog"]


def commands(path):
    """Arguments of each `wsss-affinity` on a page, in blocks and in running text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    lines = [code for language in ("bash", "console") for code, _ in blocks(path, language)]
    lines += re.findall(r"`((?:wsss-affinity|python -m wsss_affinity)[^`]*)`", text)
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # other programs' lines
            assert "wsss" not in line, line
            continue
        for start, word in enumerate(words):
            if word in ("wsss-affinity", "wsss-affinity-compare"):
                yield word, words[start + 1 :]
            elif word == "wsss_affinity" and words[start - 1] == "-m":
                yield "wsss-affinity", words[start + 1 :]


def composed(arguments):
    """Compose what the command line would, of a sweep the first point."""
    # <path> and … stand for what the reader puts there
    texts = [re.sub(r"<[^>]*>|…", "placeholder", a) for a in arguments]
    texts = [t for t in texts if "=" in t or t.startswith("~")]
    first = []
    for text in texts:
        override = OverridesParser.create().parse_override(text)
        if override.is_sweep_override():
            check_overrides([text])
            text = f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
        first.append(text)
    return compose(CONFIG_NAME, first)  # which refuses keys and choices that do not exist


def test_commands_compose():
    seen, left_out = {}, set()
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        for path in PAGES:
            for program, arguments in commands(path):
                reason = set(arguments) & NOT_COMPOSED.keys()
                left_out |= reason
                if reason or program != "wsss-affinity" or tuple(arguments) in seen:
                    continue
                try:
                    seen[tuple(arguments)] = composed(arguments)
                except Exception as error:
                    raise AssertionError(f"{path}: {shlex.join(arguments)}: {error}") from error
    assert len(seen) >= 40
    assert left_out == NOT_COMPOSED.keys()
    example = ("experiment=folder", "data.root=photos", "cams_from=their_cams")
    assert seen[example].cams_from == "their_cams"


def test_flags_of_compare_exist(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    known = capsys.readouterr().out
    flags = [
        word
        for path in PAGES
        for program, arguments in commands(path)
        for word in arguments
        if program == "wsss-affinity-compare" and word.startswith("--")
    ]
    assert len(flags) >= 3
    assert [flag for flag in flags if flag not in known] == []


def test_keys_in_running_text_exist():
    """Each `section.key` of a page, with or without a value, is one of the configuration."""
    known, sections = set(), set()

    def visit(node, prefix):
        for name, value in node.items_ex(resolve=False):
            known.add(f"{prefix}{name}")
            if hasattr(value, "items_ex"):
                visit(value, f"{prefix}{name}.")

    choices = [f"data={path.stem}" for path in (config_dir() / "data").glob("*.yaml")]
    for choice in (*choices, "backbone=target", "preset=psa_original"):
        cfg = load_config([choice])
        sections |= set(cfg)
        visit(cfg, "")
    checked = 0
    for path in PAGES:
        text = re.sub(r"```.*?```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)
        for span in re.findall(r"`([a-z_]+(?:\.[a-z_0-9*]+)+)(?:=[^`]*)?`", text):
            if span.split(".")[0] in sections or span.startswith("train_*"):
                checked += 1
                assert any(fnmatch(key, span) for key in known), f"{path}: there is no key {span}"
    assert checked >= 100


@pytest.mark.slow
@pytest.mark.parametrize("path", ["docs/pytorch.md"])
def test_onnx_blocks_run(path, tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the extra `onnx`")
    monkeypatch.chdir(tmp_path)
    first = next(blocks(path))
    chosen = [b for b in blocks(path) if b[0].startswith("# onnx")]
    assert len(chosen) == 2
    run(path, [first, *chosen], {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("DeepLabV3Plus", "tiny"), pytest.param("Unet", "resnet18", marks=pytest.mark.slow)],
)
def test_onnx_gives_what_torch_gives_at_any_size(architecture, encoder, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    net = SegmentationNet(4, architecture=architecture, encoder=encoder).eval()
    auto = torch.export.Dim.AUTO
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net,
        (torch.randn(2, 3, 64, 96),),
        path,
        dynamic_shapes=({0: auto, 2: auto, 3: auto},),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    for size in ((1, 3, 50, 70), (3, 3, 64, 64)):
        images = torch.randn(size)
        (found,) = session.run(None, {name: images.numpy()})
        with torch.inference_mode():
            expected = net(images)
        assert expected.std() > 1e-3  # random weights tell pixels apart
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)
