import signal

import pytest
import pytorch_lightning as pl

from wsss_affinity.pipeline import run_pipeline


def test_interrupted_training_says_so_and_goes_on_later(tiny_config, monkeypatch):
    cfg = tiny_config("pipeline.only=[train_cam]")
    setup = pl.Callback.on_train_batch_start

    def interrupt(self, trainer, *rest):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("wsss_affinity.callbacks.LossHistory.on_train_batch_start", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(cfg)
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    monkeypatch.setattr("wsss_affinity.callbacks.LossHistory.on_train_batch_start", setup)
    result = run_pipeline(cfg)
    assert result.stages["train_cam"].manifest["resumed"]
    assert len(result.stages["train_cam"].manifest["metrics"]["epochs"]) == 2
