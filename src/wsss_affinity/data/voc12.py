"""PASCAL VOC 2012 with the additional masks of SBD, as the published results use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import SBDataset, VOCSegmentation

from wsss_affinity.data.download import fetch_folder
from wsss_affinity.data.prepare import origin_key
from wsss_affinity.data.sbd import MASKS, TRAIN_AUG, find_sbd, prepare_train_aug
from wsss_affinity.data.source import Source
from wsss_affinity.data.voc import voc_source
from wsss_affinity.errors import WSSSError


def voc12_source(
    root: str | Path,
    *,
    prepared: str | Path,
    sbd_root: str | Path | None = None,
    download: bool = False,
    train_split: str = "train_aug",
    score_split: str | None = "train",
    val_split: str | None = "val",
    test_split: str | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """List VOC 2012; masks and list of ``train_aug`` are made on first use.

    A devkit that holds ``SegmentationClassAug`` and ``ImageSets/Segmentation/train_aug.txt`` is
    used as it is, unless ``sbd_root`` is given.

    Args:
        root: Folder of the devkit (the one with ``JPEGImages``), or the folder that holds
            ``VOCdevkit/VOC2012``.
        prepared: Folder for the masks and the list of ``train_aug``.
        sbd_root: Folder of SBD, ``benchmark_RELEASE/dataset``; None is ``sbd`` below ``root``.
        download: Fetch VOC 2012 (2 GB) and SBD (1.4 GB) into ``root``, as far as they are not
            there. The test images are to be had from VOC's server only, after logging in.
        train_split: As in :func:`~wsss_affinity.data.voc_source`, like the next ones.
        score_split: Split to score pseudo-masks on.
        val_split: Split to score the segmentation network on.
        test_split: ``test``, once the archive of the test images is unpacked over the devkit.
        classes: Restrict to these classes.

    Raises:
        WSSSError: If a part is missing, with what to fetch or to set.
    """
    root, prepared = Path(root).expanduser(), Path(prepared).expanduser()
    devkit = root if (root / "JPEGImages").is_dir() else root / "VOCdevkit" / "VOC2012"
    if download and not devkit.is_dir():
        _download_voc(root)
    if not (devkit / "JPEGImages").is_dir():
        raise WSSSError(
            f"{root} holds no VOC 2012 (JPEGImages, or VOCdevkit/VOC2012); set data.root to the "
            "unpacked VOCtrainval_11-May-2012.tar, or data.download=true"
        )
    mask_folder: Path = devkit / "SegmentationClass"
    if "train_aug" in (train_split, score_split):
        complete = (devkit / "ImageSets" / "Segmentation" / TRAIN_AUG).is_file()
        if complete and (devkit / MASKS).is_dir() and sbd_root is None:
            mask_folder = devkit / MASKS
        else:
            sbd = root / "sbd" if sbd_root is None else Path(sbd_root).expanduser()
            if download and sbd_root is None:
                _download_sbd(sbd)
            sbd = find_sbd(sbd)
            made_of = prepared.resolve() / origin_key(devkit, sbd)
            prepare_train_aug(devkit, sbd, made_of)
            mask_folder = made_of / MASKS
            made = str(made_of / TRAIN_AUG)
            train_split = made if train_split == "train_aug" else train_split
            score_split = made if score_split == "train_aug" else score_split
    return voc_source(
        devkit,
        train_split=train_split,
        score_split=score_split,
        val_split=val_split,
        test_split=test_split,
        classes=classes,
        mask_folder=mask_folder,
    )


def _download_voc(root: Path) -> None:
    def fetch(folder: Path) -> Path:
        VOCSegmentation(str(folder), year="2012", download=True)
        return folder / "VOCdevkit" / "VOC2012"

    fetch_folder(root / "VOCdevkit" / "VOC2012", fetch, "VOCtrainval_11-May-2012.tar")


def _download_sbd(folder: Path) -> None:
    def fetch(folder: Path) -> Path:
        SBDataset(str(folder), mode="segmentation", download=True)
        (folder / SBDataset.filename).unlink()
        return folder

    fetch_folder(folder, fetch, "SBD's benchmark.tgz")
