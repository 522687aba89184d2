from pathlib import Path

from wsss_affinity.data.source import Problem
from wsss_affinity.pipeline.runner import RunResult, StageResult
from wsss_affinity.report import print_report


def score(name, miou, **changes):
    base = {
        "name": name,
        "split": "score",
        "images": 4,
        "miou": miou,
        "iou": {"background": 0.9, "cat": 0.5},
        "labels_given": True,
        "threshold": None,
        "saw_masks": False,
        "crf": False,
        "coverage": None,
    }
    return base | changes


def test_table_says_what_each_score_means(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    scores = [
        score("CAM, best", 0.512, threshold=0.3, saw_masks=True),
        score("pseudo-masks", 0.634, crf=True),
        score("segmentation", 0.6, split="val", labels_given=False, iou={"cat": 0.25}),
    ]
    manifest = {"wall_time_s": 90.0, "metrics": {"images": 180, "scores": scores}}
    stages = {"evaluate": StageResult("evaluate", Path("x"), False, manifest)}
    print_report(RunResult(stages, (Problem("bad", "it is broken"),)), per_class=True)
    lines = capsys.readouterr().out.splitlines()

    def line(word):
        return next(text for text in lines if word in text)

    assert "1:30" in line("reused")
    assert "2.0" in line("reused")  # images/s
    assert "0.512" in line("CAM, best")
    assert "threshold 0.30 chosen with masks" in line("CAM, best")
    assert "0.634" in line("pseudo-masks")
    assert "dense CRF" in line("pseudo-masks")
    assert "4 unseen images" in line("no image-level labels given")
    assert "0.250" in line("│ cat")
    assert "1 images were left out:" in lines
    assert "  bad: it is broken" in lines
