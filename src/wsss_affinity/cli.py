"""The command line: ``wsss-affinity [key=value …]``."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wsss_affinity.config import CONFIG_NAME, VERSION_BASE, check_overrides, config_dir
from wsss_affinity.errors import BAD_INPUT, WSSSError, did_you_mean
from wsss_affinity.interrupt import RESUMABLE, Interrupted, stop_on_signals

if TYPE_CHECKING:
    from wsss_affinity.pipeline.status import Status

log = logging.getLogger(__name__)
_MODES = ("run", "predict", "template")


def main() -> None:
    """Start the Hydra application.

    Bad input ends it with one sentence and exit status 2; a run that was asked to stop, with one
    sentence and 75.
    """
    try:
        check_overrides(sys.argv[1:])
        folder = str(config_dir())
    except WSSSError as error:
        _fail(str(error))
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # outside of a job nothing is in hand; joblib ends its processes when this is raised
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        hydra.main(version_base=VERSION_BASE, config_path=folder, config_name=CONFIG_NAME)(_job)()
    except (Interrupted, KeyboardInterrupt):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # nothing is left but to end
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(RESUMABLE) from None


def _job(cfg: DictConfig) -> float | None:
    job = HydraConfig.get()
    # torch is imported here, since a misspelt key need not wait for it
    from wsss_affinity.pipeline.launch import joined, start
    from wsss_affinity.pipeline.status import job_status, sentence

    sweep = job.mode == RunMode.MULTIRUN
    try:
        exit_status = start(cfg, sys.argv[1:], multirun=sweep)
        if exit_status is not None:
            raise SystemExit(exit_status)
        with stop_on_signals(), joined(cfg), job_status(Path(job.runtime.output_dir)) as status:
            return _MODE_FUNCTIONS[_mode(cfg)](cfg, status)
    except Exception as error:
        if sweep:  # the other jobs go on, see wsss_affinity.summary
            log.error("job %s failed: %s", job.job.num, sentence(error))
        elif isinstance(error, WSSSError):
            _fail(sentence(error))
        raise


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT) from None


def _mode(cfg: DictConfig) -> str:
    if cfg.mode not in _MODES:
        raise WSSSError(f"mode {cfg.mode!r} is not known; {did_you_mean(str(cfg.mode), _MODES)}")
    return str(cfg.mode)


def _run(cfg: DictConfig, status: Status) -> float | None:
    from wsss_affinity import world
    from wsss_affinity.pipeline.objective import check_objective, objective
    from wsss_affinity.pipeline.runner import run_pipeline, write_metrics
    from wsss_affinity.report import print_report

    check_objective(cfg)
    result = run_pipeline(cfg, tell=status.stage)
    if not result.stages or world.rank():
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    worth = objective(cfg, result) if HydraConfig.get().mode == RunMode.MULTIRUN else None
    write_metrics(result, folder / "metrics.json", worth)
    print_report(result, per_class=cfg.pipeline.per_class)
    for name, stage in result.stages.items():
        if name == "random_walk":
            masks = stage.path / "masks"
            if (shards := masks / "shards").is_dir():
                print(f"pseudo-masks   {shards}/*.tar  (tar -xf FILE gives the PNGs)")
            else:
                print(f"pseudo-masks   {masks}")
        if name == "train_segmentation":
            print(f"network        {stage.path}  (predict.network)")
        if name == "evaluate":
            archive = stage.manifest["metrics"]["submission"]
            if archive is not None:
                print(f"submission     {stage.path / archive}")
            sheet = stage.path / "contact_sheet.png"
            if sheet.is_file():
                from wsss_affinity.files import write_bytes

                write_bytes(folder / sheet.name, sheet.read_bytes())
                print(f"contact sheet  {folder / sheet.name}")
    print(f"metrics        {folder / 'metrics.json'}")
    if worth is None:
        return None
    print(f"objective      {worth.name} {worth.value:.4f}")
    return worth.value


def _predict(cfg: DictConfig, status: Status) -> None:
    from omegaconf import OmegaConf

    from wsss_affinity import world
    from wsss_affinity.pipeline.in_use import in_use
    from wsss_affinity.pipeline.predict import predict
    from wsss_affinity.pipeline.runner import artifact_path

    if OmegaConf.is_missing(cfg.predict, "images"):
        raise WSSSError("predict.images is not set; give the folder of the photographs")
    network = cfg.predict.network
    folder = Path(network) if network else artifact_path(cfg, "train_segmentation")
    status.stage("predict")
    with in_use(Path(cfg.output_dir)) as note:
        note({"train_segmentation": folder.name})
        masks = predict(cfg, folder)
    if world.rank() == 0:
        print(f"masks  {masks}")


def _template(cfg: DictConfig, _: Status) -> None:
    from omegaconf import OmegaConf

    from wsss_affinity.data.folder import write_label_template

    if OmegaConf.is_missing(cfg.data, "root"):
        raise WSSSError("data.root is not set; give the folder of the photographs")
    path = write_label_template(cfg.data.root, cfg.data.get("labels", "labels.csv"))
    print(f"{path} is written; fill in its column `labels` (class names, separated by spaces)")


_MODE_FUNCTIONS = {"run": _run, "predict": _predict, "template": _template}

if __name__ == "__main__":
    main()
