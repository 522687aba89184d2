import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl

from wsss_affinity import interrupt
from wsss_affinity.callbacks import LossHistory
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.checksums import CHECKPOINT
from wsss_affinity.pipeline.fit import WEIGHTS


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


def test_stopped_training_goes_on_after_its_step(tiny_config, monkeypatch, capsys):
    """SIGTERM within an epoch of three steps: what is left is not to be told from a calm run."""
    calm = run_pipeline(tiny_config("pipeline.only=[train_cam]"))
    calm = calm.stages["train_cam"]
    expected = (calm.path / WEIGHTS).read_bytes()
    steps = []

    def stop(self, trainer, *rest):
        steps.append(trainer.global_step)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LossHistory, "on_train_batch_start", stop)
    cfg = tiny_config("pipeline.only=[train_cam]", "pipeline.force=true")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(interrupt.Interrupted), interrupt.stop_on_signals():
        run_pipeline(cfg)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert steps == [0, 1, 2, 3, 4]
    assert "Traceback" not in capsys.readouterr().err
    again = run_pipeline(cfg).stages["train_cam"]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert again.manifest["resumed"]
    assert (again.path / WEIGHTS).read_bytes() == expected
    assert again.manifest["metrics"] == calm.manifest["metrics"]


def test_several_devices_need_as_many_processes(tiny_config):
    cfg = tiny_config("pipeline.only=[train_cam]", "trainer.devices=2")
    with pytest.raises(WSSSError, match=r"ask for 2 devices, but this run has 1 process; start it"):
        run_pipeline(cfg)


def test_killed_before_its_manifest_does_not_train_again(tiny_config, monkeypatch):
    calm = run_pipeline(tiny_config("pipeline.only=[train_cam]")).stages["train_cam"]
    expected = (calm.path / WEIGHTS).read_bytes()
    cfg = tiny_config("pipeline.only=[train_cam]", "pipeline.force=true")
    with monkeypatch.context() as patch:
        patch.setattr("wsss_affinity.pipeline.making.write_record", lambda work: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_pipeline(cfg)
    monkeypatch.setattr(LossHistory, "on_train_batch_start", lambda *_: pytest.fail("trains"))
    again = run_pipeline(cfg).stages["train_cam"]
    assert again.made
    assert again.manifest["resumed"]
    assert again.manifest["metrics"] == calm.manifest["metrics"]
    assert (again.path / WEIGHTS).read_bytes() == expected
    names = {path.name for path in again.path.iterdir()}
    assert names == {WEIGHTS, "manifest.json", "checksums.tsv"}


@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_torn_checkpoint_starts_the_fit_anew(tiny_config, monkeypatch, caplog, part):
    def stop(self, trainer, *rest):
        if trainer.current_epoch == 1:
            raise ZeroDivisionError

    steps = []
    cfg = tiny_config("pipeline.only=[train_cam]")
    with monkeypatch.context() as patch:
        patch.setattr(LossHistory, "on_train_batch_start", stop)
        with pytest.raises(ZeroDivisionError):
            run_pipeline(cfg)
    (checkpoint,) = Path(cfg.output_dir).rglob(CHECKPOINT)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(part * len(whole))])
    monkeypatch.setattr(
        LossHistory, "on_train_batch_start", lambda _, t, *__: steps.append(t.global_step)
    )
    result = run_pipeline(cfg).stages["train_cam"]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert f"{checkpoint} is damaged; this training starts anew" in caplog.text
    assert len(result.manifest["metrics"]["epochs"]) == 2
