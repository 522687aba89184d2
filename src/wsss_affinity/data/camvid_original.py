"""CamVid as its authors publish it: 701 stills, and colour masks of 32 classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsss_affinity.data.images import save_mask
from wsss_affinity.data.prepare import for_each, outdated
from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.errors import WSSSError, did_you_mean

STILLS, LABELS, COLOURS = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"
#: the classes that are scored, in the order of their mask values, and what is counted as each
CAMVID_GROUPS = {
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("LaneMkgsDriv", "LaneMkgsNonDriv", "Road"),
    "pavement": ("ParkingBlock", "RoadShoulder", "Sidewalk"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("Misc_Text", "SignSymbol", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"),
    "pedestrian": ("Animal", "CartLuggagePram", "Child", "Pedestrian"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
CAMVID_CLASSES = tuple(CAMVID_GROUPS)
VOID = len(CAMVID_CLASSES)  # in mask files
_VALUES = {name: i for i, names in enumerate(CAMVID_GROUPS.values()) for name in names}
_VALUES["Void"] = VOID


def original_samples(
    root: Path, split: str, masks: Path
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    """List a split, by the sequences that the stills come from.

    ``test`` is sequence Seq05VD and the part of 0001TP from frame 8550 on (233), ``val`` frames
    7959 to 8159 of 0016E5 (101), ``train`` the rest (367).

    Args:
        root: Folder with ``701_StillsRaw_full/<id>.png``, ``LabeledApproved_full/<id>_L.png`` and
            ``label_colors.txt``.
        split: ``train``, ``val`` or ``test``.
        masks: Folder for masks with the eleven classes and void as indices, which are made from
            the colours as far as they are not there.

    Returns:
        The samples without image-level labels, and those left out because their colours are
        missing, cannot be read or are not in ``label_colors.txt``.

    Raises:
        WSSSError: If the split or a part of the data set is missing.
    """
    if split not in ("train", "val", "test"):
        hint = did_you_mean(split, ("train", "val", "test"))
        raise WSSSError(f"CamVid has no split {split!r}; {hint}")
    for part in (LABELS, COLOURS):
        if not (root / part).exists():
            raise WSSSError(
                f"{root / part} does not exist; expected it beside {STILLS}, fetch CamVid's {part}"
            )
    names = [p.stem for p in sorted((root / STILLS).glob("*.png")) if split_of(p.stem, p) == split]
    table = read_colours(root / COLOURS)

    def convert(name: str) -> None:
        save_mask(masks / f"{name}.png", read_colour_mask(root / LABELS / f"{name}_L.png", table))

    jobs = [n for n in names if outdated(masks / f"{n}.png", root / LABELS / f"{n}_L.png")]
    bad = {
        name: str(result)
        for name, result in for_each("convert masks", jobs, convert)
        if isinstance(result, WSSSError)
    }
    samples = tuple(
        Sample(name, root / STILLS / f"{name}.png", (), masks / f"{name}.png")
        for name in names
        if name not in bad
    )
    return samples, tuple(Problem(name, message) for name, message in bad.items())


def split_of(name: str, path: Path) -> str:
    """The split of a still, e.g. ``0016E5_07959`` is in ``val``.

    Raises:
        WSSSError: If it is of none of CamVid's four sequences.
    """
    sequence, _, frame = name.partition("_")
    number = int(frame) if frame.isdecimal() else -1
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    if sequence == "0016E5" and 7959 <= number <= 8159:
        return "val"
    if sequence in ("0001TP", "0006R0", "0016E5"):
        return "train"
    raise WSSSError(f"{path} is none of CamVid's stills (e.g. 0016E5_07959.png); move it away")


def read_colours(path: Path) -> dict[int, int]:
    """Read ``label_colors.txt``: mask value by colour, ``red << 16 | green << 8 | blue``.

    Raises:
        WSSSError: If a line is not ``red green blue name`` or names an unknown class.
    """
    table: dict[int, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 4 or not all(p.isdecimal() and int(p) < 256 for p in parts[:3]):
            raise WSSSError(
                f"{path}, line {number}: {line!r}; expected three numbers from 0 to 255 and a name"
            )
        if parts[3] not in _VALUES:
            raise WSSSError(
                f"{path}, line {number}: {parts[3]!r} is no class of CamVid; "
                f"{did_you_mean(parts[3], _VALUES)}"
            )
        red, green, blue = map(int, parts[:3])
        table[red << 16 | green << 8 | blue] = _VALUES[parts[3]]
    return table


def read_colour_mask(path: Path, table: Mapping[int, int]) -> NDArray[np.uint8]:
    """Read a colour mask as mask values ``(H, W)``.

    Raises:
        WSSSError: If it is missing, cannot be read, or holds another colour.
    """
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(np.int32)
    except FileNotFoundError:
        raise WSSSError(f"mask {path} does not exist; restore it or move its still away") from None
    except Exception as error:
        raise WSSSError(f"mask {path} cannot be read ({error}); replace it") from error
    codes, where = np.unique(
        pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2], return_inverse=True
    )
    for code in codes.tolist():
        if code not in table:
            colour = (code >> 16, code >> 8 & 255, code & 255)
            raise WSSSError(
                f"mask {path} holds the colour {colour}; expected those of {COLOURS}, mend it"
            )
    values = np.array([table[code] for code in codes.tolist()], dtype=np.uint8)
    return values[where].reshape(pixels.shape[:2])
