import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_affinity.data.images import save_mask


@pytest.fixture
def make_devkit():
    """Make VOC 2012's folder: four masks of its own that say 9, photographs of SBD too."""

    def make(root):
        own = {"2007_000001": "train", "2007_000002": "train", "2007_000003": "val"}
        own["2008_000004"] = "val"
        for name in [*own, "2008_000005", "2008_000006"]:
            for folder in ("JPEGImages", "Annotations"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 2)).save(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations" / f"{name}.xml").write_text(
                "<annotation><object><name>bottle</name><difficult>1</difficult></object>"
                "</annotation>"
            )
            if name in own:
                mask = np.array([[0, 9, 9, 255]] * 2, dtype=np.uint8)
                save_mask(root / "SegmentationClass" / f"{name}.png", mask)
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for split in ("train", "val"):
            names = [name for name, s in own.items() if s == split]
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        return root

    return make


@pytest.fixture
def make_sbd():
    """Make SBD's ``dataset``: masks that say 5; of VOC's train 1, of its val 2, and 2 others."""

    def make(root):
        splits = {
            "train": ["2007_000001", "2007_000003", "2008_000005"],
            "val": ["2008_000004", "2008_000006"],
        }
        for folder in ("cls", "img", "inst"):
            (root / folder).mkdir(parents=True)
        mask = np.array([[0, 5, 5, 5]] * 2, dtype=np.uint8)
        content = {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.uint8([[5]])}}
        for split, names in splits.items():
            (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
            for name in names:
                savemat(root / "cls" / f"{name}.mat", content)
        return root

    return make


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def http_server(tmp_path, monkeypatch):
    """A folder, and the address under which its files are to be had."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(_Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
