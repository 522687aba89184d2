from pathlib import Path

from wsss_affinity.pipeline import run_pipeline


def test_images_in_both_splits_are_pointed_out(tiny_config, caplog):
    cfg = tiny_config("pipeline.dry_run=true")
    run_pipeline(cfg)
    caplog.clear()
    lists = next(Path(cfg.output_dir).rglob("train.txt")).parent
    (lists / "val.txt").write_text("val_00000\ntrain_00001\n")
    run_pipeline(cfg)
    assert "1 images are in the training and the validation split" in caplog.text
