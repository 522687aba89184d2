import os

import numpy as np
import pytest
from PIL import Image

from wsss_affinity.data import camvid_original, camvid_source
from wsss_affinity.data.camvid_original import (
    CAMVID_CLASSES,
    CAMVID_GROUPS,
    original_samples,
    read_colours,
    split_of,
)
from wsss_affinity.errors import WSSSError

COLOURS = """\
64 128 64\tAnimal
192 0 128\tArchway
0 128 192\tBicyclist
0 128 64\tBridge
128 0 0\t\tBuilding
64 0 128\tCar
64 0 192\tCartLuggagePram
192 128 64\tChild
192 192 128\tColumn_Pole
64 64 128\tFence
128 0 192\tLaneMkgsDriv
192 0 64\tLaneMkgsNonDriv
128 128 64\tMisc_Text
192 0 192\tMotorcycleScooter
128 64 64\tOtherMoving
64 192 128\tParkingBlock
64 64 0\t\tPedestrian
128 64 128\tRoad
128 128 192\tRoadShoulder
0 0 192\t\tSidewalk
192 128 128\tSignSymbol
128 128 128\tSky
64 128 192\tSUVPickupTruck
0 0 64\t\tTrafficCone
0 64 64\t\tTrafficLight
192 64 128\tTrain
128 128 0\tTree
192 128 192\tTruck_Bus
64 0 64\t\tTunnel
192 192 0\tVegetationMisc
0 0 0\t\tVoid
64 192 0\tWall
"""
SKY, WALL, LANE, VOID, PRAM = (128, 128, 128), (64, 192, 0), (128, 0, 192), (0, 0, 0), (64, 0, 192)
STILLS = {
    "0001TP_006690": [SKY, WALL, LANE, VOID],
    "0006R0_f00930": [PRAM] * 4,
    "0016E5_07959": [WALL] * 4,
    "0001TP_008550": [SKY] * 4,
    "Seq05VD_f00000": [SKY] * 4,
}
TRAIN = ["0001TP_006690", "0006R0_f00930"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "CamVid"
    (root / "701_StillsRaw_full").mkdir(parents=True)
    (root / "LabeledApproved_full").mkdir()
    (root / "label_colors.txt").write_text(COLOURS)
    for name, colours in STILLS.items():
        Image.new("RGB", (4, 1)).save(root / "701_StillsRaw_full" / f"{name}.png")
        mask = np.array([colours], dtype=np.uint8)
        Image.fromarray(mask).save(root / "LabeledApproved_full" / f"{name}_L.png")
    return root


def test_through_the_reader(root, tmp_path):
    source = camvid_source(root, prepared=tmp_path / "out")
    assert [(s.id, s.labels) for s in source.train] == [(TRAIN[0], (0, 1, 3)), (TRAIN[1], (9,))]
    assert [(s.id, s.labels) for s in source.val] == [("0016E5_07959", (1,))]
    assert source.train[0].image == root / "701_StillsRaw_full" / "0001TP_006690.png"
    assert source.train[0].mask.is_relative_to(tmp_path / "out")
    assert source.read_mask(source.train[0]).tolist() == [[1, 2, 4, 255]]
    assert source.problems == ()
    assert source.labels_from_masks
    scored_on_test = camvid_source(root, prepared=tmp_path / "out", val_split="test")
    assert [s.id for s in scored_on_test.val] == ["0001TP_008550", "Seq05VD_f00000"]


def test_grouping():
    assert len(CAMVID_CLASSES) == 11
    names = [name for group in CAMVID_GROUPS.values() for name in group]
    assert len(names) == len(set(names)) == 31
    assert {line.split()[3] for line in COLOURS.splitlines()} == {*names, "Void"}


def test_colours(tmp_path):
    path = tmp_path / "label_colors.txt"
    path.write_text(COLOURS)
    table = read_colours(path)
    assert len(table) == 32
    assert table[128 << 16 | 128 << 8 | 128] == 0  # sky
    assert table[192 << 16 | 0 << 8 | 64] == 3  # markings are road
    assert table[0 << 16 | 64 << 8 | 64] == 6  # traffic lights are signs
    assert table[64 << 16 | 128 << 8 | 192] == 8  # pick-ups are cars
    assert table[0] == 11
    path.write_text("64 128 64 Animal\n1 2 Road\n")
    with pytest.raises(WSSSError, match=r"line 2: '1 2 Road'; expected three numbers from 0 to"):
        read_colours(path)
    path.write_text("64 128 256 Animal\n")
    with pytest.raises(WSSSError, match="line 1"):
        read_colours(path)
    path.write_text("64 128 64 Animals\n")
    with pytest.raises(WSSSError, match=r"line 1: 'Animals' is no class of .*'Animal'"):
        read_colours(path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001TP_006690", "train"),
        ("0001TP_008520", "train"),
        ("0001TP_008550", "test"),
        ("0001TP_010380", "test"),
        ("0006R0_f00930", "train"),
        ("0016E5_00390", "train"),
        ("0016E5_07957", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_08159", "val"),
        ("0016E5_08190", "train"),
        ("Seq05VD_f05100", "test"),
    ],
)
def test_split_of(name, split, tmp_path):
    assert split_of(name, tmp_path) == split


def test_still_of_no_sequence(root, tmp_path):
    path = root / "701_StillsRaw_full" / "holiday.png"
    Image.new("RGB", (4, 1)).save(path)
    with pytest.raises(WSSSError) as caught:
        original_samples(root, "train", tmp_path)
    assert str(caught.value) == (
        f"{path} is none of CamVid's stills (e.g. 0016E5_07959.png); move it away"
    )


def test_unknown_colour_is_a_problem(root, tmp_path):
    path = root / "LabeledApproved_full" / "0001TP_006690_L.png"
    Image.fromarray(np.array([[SKY, (1, 2, 3)]], np.uint8)).save(path)
    (root / "LabeledApproved_full" / "0006R0_f00930_L.png").unlink()
    for _ in range(2):
        samples, problems = original_samples(root, "train", tmp_path / "masks")
        assert samples == ()
        assert [p.message for p in problems] == [
            f"mask {path} holds the colour (1, 2, 3); expected those of label_colors.txt, mend it",
            f"mask {root / 'LabeledApproved_full' / '0006R0_f00930_L.png'} does not exist; restore "
            "it or move its still away",
        ]


def test_interrupted_conversion_goes_on(root, tmp_path, monkeypatch):
    save = camvid_original.save_mask
    made = []

    def dies_at_the_second(path, mask):
        if made:
            raise MemoryError
        made.append(path.name)
        save(path, mask)

    with monkeypatch.context() as patch:
        patch.setattr(camvid_original, "save_mask", dies_at_the_second)
        with pytest.raises(MemoryError):
            original_samples(root, "train", tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == made
    again = []
    monkeypatch.setattr(
        camvid_original, "save_mask", lambda p, m: (again.append(p.name), save(p, m))
    )
    samples, _ = original_samples(root, "train", tmp_path)
    assert sorted(made + again) == [f"{name}.png" for name in TRAIN]
    again.clear()
    assert original_samples(root, "train", tmp_path)[0] == samples
    assert again == []
    path = root / "LabeledApproved_full" / "0001TP_006690_L.png"
    os.utime(path, ns=(0, samples[0].mask.stat().st_mtime_ns + 1))
    original_samples(root, "train", tmp_path)
    assert again == ["0001TP_006690.png"]


def test_missing_parts(root, tmp_path):
    with pytest.raises(WSSSError, match=r"^CamVid has no split 'trian'; did you mean 'train'\?$"):
        original_samples(root, "trian", tmp_path)
    for name in ("label_colors.txt", "LabeledApproved_full"):
        (root / name).rename(root / "away")
        with pytest.raises(WSSSError) as caught:
            original_samples(root, "train", tmp_path)
        assert str(caught.value) == (
            f"{root / name} does not exist; expected it beside 701_StillsRaw_full, fetch CamVid's "
            f"{name}"
        )
        (root / "away").rename(root / name)
