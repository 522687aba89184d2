"""The masks of SBD in VOC's form, and the training list ``train_aug`` of both data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsss_affinity.data.images import save_mask
from wsss_affinity.data.prepare import for_each, outdated
from wsss_affinity.errors import WSSSError
from wsss_affinity.files import write_bytes

MASKS = "SegmentationClassAug"
TRAIN_AUG = "train_aug.txt"


def find_sbd(folder: Path) -> Path:
    """The folder that holds ``cls/``, ``train.txt`` and ``val.txt``, at or below ``folder``.

    Raises:
        WSSSError: If there is none.
    """
    for place in (folder, folder / "dataset", folder / "benchmark_RELEASE" / "dataset"):
        if all((place / part).exists() for part in ("cls", "train.txt", "val.txt")):
            return place
    raise WSSSError(
        f"{folder} holds no SBD (cls/*.mat, train.txt, val.txt), which the split train_aug is made "
        "from; set data.sbd_root to its folder benchmark_RELEASE/dataset, or data.download=true"
    )


def read_sbd_mask(path: Path) -> NDArray[np.uint8]:
    """Read the class mask ``(H, W)`` of one of SBD's ``cls/*.mat``: 0 background, 1 to 20 classes.

    Raises:
        WSSSError: If SciPy is not installed, or the file is missing or of another form.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise WSSSError(
            "reading SBD's .mat files needs SciPy; pip install 'wsss-affinity[voc]'"
        ) from None
    try:
        with path.open("rb") as file:
            mask = np.asarray(loadmat(file)["GTcls"][0]["Segmentation"][0])
    except FileNotFoundError:
        raise WSSSError(f"SBD's mask {path} does not exist; unpack the archive again") from None
    except Exception as error:  # scipy raises many kinds
        raise WSSSError(
            f"SBD's mask {path} cannot be read ({error}); unpack the archive again"
        ) from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise WSSSError(
            f"SBD's mask {path} has shape {mask.shape} and type {mask.dtype}; expected (H, W) of "
            "uint8, unpack the archive again"
        )
    return mask


def prepare_train_aug(devkit: Path, sbd: Path, prepared: Path) -> None:
    """Write the masks and the list of ``train_aug`` into a folder, as far as they are not there.

    ``SegmentationClassAug/<id>.png`` are VOC's own masks, and SBD's where VOC has none.
    ``train_aug.txt`` is (VOC train ∪ SBD train ∪ SBD val) − VOC val, sorted: 10,582 images in the
    full data sets. It is written last.

    Args:
        devkit: VOC's folder.
        sbd: SBD's folder, see :func:`find_sbd`.
        prepared: The folder.

    Raises:
        WSSSError: If a list or a mask is missing or damaged, or the folder cannot be written.
    """
    lists = devkit / "ImageSets" / "Segmentation"
    train, val = (_read_list(lists / f"{split}.txt") for split in ("train", "val"))
    extra = _read_list(sbd / "train.txt") | _read_list(sbd / "val.txt")
    train_aug = sorted((train | extra) - val)

    own = {path.stem: path for path in (devkit / "SegmentationClass").glob("*.png")}
    origins = {name: sbd / "cls" / f"{name}.mat" for name in train_aug if name in extra} | own
    jobs = [
        (origin, target)
        for name, origin in sorted(origins.items())
        if outdated(target := prepared / MASKS / f"{name}.png", origin)
    ]
    for _, result in for_each("prepare train_aug", jobs, _convert):
        if isinstance(result, WSSSError):
            raise result
    listing = "".join(f"{name}\n" for name in train_aug).encode()
    target = prepared / TRAIN_AUG
    if not target.is_file() or target.read_bytes() != listing:
        write_bytes(target, listing)


def _convert(job: tuple[Path, Path]) -> None:
    origin, target = job
    if origin.suffix == ".mat":
        save_mask(target, read_sbd_mask(origin))
    else:
        write_bytes(target, origin.read_bytes())


def _read_list(path: Path) -> set[str]:
    try:
        names = set(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise WSSSError(
            f"list {path} cannot be read ({error}); unpack the archive again"
        ) from error
    return names
