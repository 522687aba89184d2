"""The Python of the documentation runs, block after block in one namespace."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(path):
    """Code and line of each block that holds Python."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield match[1], text.count("\n", 0, match.start(1))


def run(path, chosen, namespace):
    for code, line in chosen:
        # errors name the file and the line
        exec(compile("\n" * line + code, ROOT / path, "exec"), namespace)


@pytest.mark.parametrize("path", ["README.md", "docs/pytorch.md"])
def test_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = [b for b in blocks(path) if not b[0].startswith("# onnx")]
    assert chosen
    run(path, chosen, {"__name__": "__main__"})


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "encoder"), [("DeepLabV3Plus", "tiny"), ("Unet", "resnet18")]
)
def test_onnx_gives_what_torch_gives_at_any_size(architecture, encoder, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    import torch

    from wsss_affinity import SegmentationNet

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
