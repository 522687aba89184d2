from pathlib import Path

from wsss_affinity.data.source import Problem
from wsss_affinity.pipeline.runner import RunResult, StageResult
from wsss_affinity.report import print_report


def score(name, miou, **changes):
    base = {
        "name": name,
        "split": "score",
        "stage": "make_cam",
        "split_name": None,
        "images": 4,
        "miou": miou,
        "interval": None,
        "iou": {"background": 0.9, "cat": 0.5},
        "precision": {"background": 0.95, "cat": None},
        "recall": {"background": 0.92, "cat": 0.61},
        "labels_given": True,
        "labels_from_masks": False,
        "threshold": None,
        "alpha": None,
        "saw_masks": False,
        "chosen_on": None,
        "location_prior": False,
        "trained_on_masks": False,
        "crf": False,
        "crf_iterations": 0,
        "coverage": None,
        "missing": 0,
    }
    return base | changes


def report(capsys, monkeypatch, scores, *, per_class=False, sweeps=None, problems=()):
    """Lines of a report, and a function that finds the one with a word in it."""
    monkeypatch.setenv("COLUMNS", "200")
    metrics = {"images": 180, "scores": scores, "sweeps": sweeps or {}}
    manifest = {"wall_time_s": 90.0, "metrics": metrics}
    stages = {"evaluate": StageResult("evaluate", Path("x"), False, manifest)}
    print_report(RunResult(stages, problems), per_class=per_class)
    lines = capsys.readouterr().out.splitlines()

    def line(word):
        (found,) = [text for text in lines if word in text]
        return found

    return lines, line


def test_table_says_what_each_score_means(capsys, monkeypatch):
    scores = [
        score("CAM", 0.412, threshold=0.2, interval=[0.39, 0.4344]),
        score("CAM, best", 0.512, threshold=0.3, saw_masks=True, chosen_on="score"),
        score("affinity labels", 0.7, crf=True, crf_iterations=10, coverage=0.631),
        score("pseudo-masks", 0.634, crf=True, crf_iterations=1, alpha=16.0, split_name="train"),
        score("segmentation", 0.6, split="val", split_name="minival", labels_given=False),
    ]
    problems = (Problem("bad", "it is broken"),)
    lines, line = report(capsys, monkeypatch, scores, problems=problems)
    assert "1:30" in line("reused")
    assert "2.0" in line("reused")  # images/s
    assert "0.412 │ 0.390–0.434 │ 4 training images " in line("│ CAM  ")
    assert "threshold 0.20, image-level labels given" in line("│ CAM  ")
    assert "0.512" in line("CAM, best")
    assert "threshold 0.30, chosen with masks of the training images, image" in line("CAM, best")
    assert "dense CRF (10 iterations), 63% of the pixels labelled" in line("affinity labels")
    assert "0.634" in line("pseudo-masks")
    assert "4 training images (train)" in line("pseudo-masks")
    assert "α 16, dense CRF (1 iteration), image-level labels given" in line("pseudo-masks")
    assert "4 unseen images (minival)" in line("no image-level labels given")
    assert "1 images were left out:" in lines
    assert "  bad: it is broken" in lines


def test_what_masks_had_a_hand_in_is_told(capsys, monkeypatch):
    scores = [
        score("pseudo-masks, best", 0.7, alpha=8.0, saw_masks=True, split_name="train", crf=True)
        | {"crf_iterations": 5, "labels_from_masks": True},
        score("segmentation", None, split="val", labels_given=False, trained_on_masks=True),
    ]
    _, line = report(capsys, monkeypatch, scores)
    chosen = line("pseudo-masks, best")
    assert "α 8, dense CRF (5 iterations), chosen with masks of train" in chosen
    assert "image-level labels read off masks given" in chosen
    assert "trained on masks, no image-level labels given" in line("segmentation")
    assert "│ segmentation       │       │" in line("segmentation")  # no mIoU


def test_what_else_a_score_owes_itself_to(capsys, monkeypatch):
    bare = {"saw_masks": True, "stage": "random_walk"}  # no CRF at all was the best choice
    unseen = {"split": "val", "labels_given": False, "labels_from_masks": True}
    scores = [
        score("pseudo-masks, best", 0.7, **bare),
        score("segmentation", 0.5, location_prior=True, **unseen),
    ]
    _, line = report(capsys, monkeypatch, scores)
    assert "no dense CRF, chosen with masks of the training" in line("pseudo-masks, best")
    remarks = "location prior, no image-level labels given, trained from labels read off masks"
    assert remarks in line("segmentation")


def test_classes_have_iou_precision_and_recall(capsys, monkeypatch):
    scores = [score("CAM", 0.5), score("segmentation", 0.6, iou={"cat": 0.25}, recall={})]
    lines, _ = report(capsys, monkeypatch, scores, per_class=True)
    cats = [text.split("│")[2:4] for text in lines if text.startswith("│ cat")]
    assert [[cell.strip() for cell in row] for row in cats] == [
        ["0.500", "0.250"],
        ["", ""],
        ["0.610", ""],
    ]


def test_sweeps_show_the_default_beside_the_best(capsys, monkeypatch):
    rows = [
        {"alpha": 16.0, "crf_iterations": 1, "miou": 0.61, "default": True},
        {"alpha": 8.0, "crf_iterations": 5, "miou": 0.643, "default": False},
        {"alpha": 4.0, "crf_iterations": 5, "miou": None, "default": False},
    ]
    plain = [{"alpha": None, "crf_iterations": 0, "miou": 0.5, "default": True}]
    sweeps = {"pseudo-masks": rows, "other": plain}
    _, line = report(capsys, monkeypatch, [score("CAM", 0.5)], sweeps=sweeps)
    cells = [cell.strip() for cell in line("│ pseudo-masks").split("│")[2:-1]]
    assert cells == ["alpha 16, crf_iterations 1", "0.610", "alpha 8, crf_iterations 5", "0.643"]
    assert "crf_iterations 0" in line("│ other")
    assert "alpha" not in line("│ other")
