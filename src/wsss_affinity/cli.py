"""The command line: ``wsss-affinity [key=value …]``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wsss_affinity.config import CONFIG_NAME, VERSION_BASE, check_overrides, config_dir
from wsss_affinity.errors import WSSSError, did_you_mean

log = logging.getLogger(__name__)
_MODES = ("run", "predict", "template")


def main() -> None:
    """Start the Hydra application; bad input ends it with one sentence and exit status 2."""
    try:
        check_overrides(sys.argv[1:])
        folder = str(config_dir())
    except WSSSError as error:
        _fail(error)
    try:
        hydra.main(version_base=VERSION_BASE, config_path=folder, config_name=CONFIG_NAME)(_job)()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _job(cfg: DictConfig) -> float | None:
    try:
        return _MODE_FUNCTIONS[_mode(cfg)](cfg)
    except WSSSError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the other jobs of the sweep go on
        _fail(error)


def _fail(error: WSSSError) -> NoReturn:
    # a message that crossed a process boundary brings that process's traceback along
    message = str(error).rsplit("WSSSError: ", 1)[-1].strip()
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _mode(cfg: DictConfig) -> str:
    if cfg.mode not in _MODES:
        raise WSSSError(f"mode {cfg.mode!r} is not known; {did_you_mean(str(cfg.mode), _MODES)}")
    return str(cfg.mode)


def _run(cfg: DictConfig) -> float | None:
    from wsss_affinity.pipeline.runner import run_pipeline, write_metrics
    from wsss_affinity.report import print_report

    result = run_pipeline(cfg)
    if not result.stages:
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_metrics(result, folder / "metrics.json")
    print_report(result, per_class=cfg.pipeline.per_class)
    for name, stage in result.stages.items():
        if name == "random_walk":
            print(f"pseudo-masks   {stage.path / 'masks'}")
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
    masks = [s["miou"] for s in result.scores if s["name"] == "pseudo-masks"]
    return masks[0] if masks else None


def _predict(cfg: DictConfig) -> None:
    from omegaconf import OmegaConf

    from wsss_affinity.pipeline.predict import predict
    from wsss_affinity.pipeline.runner import artifact_path

    if OmegaConf.is_missing(cfg.predict, "images"):
        raise WSSSError("predict.images is not set; give the folder of the photographs")
    network = cfg.predict.network
    folder = Path(network) if network else artifact_path(cfg, "train_segmentation")
    print(f"masks  {predict(cfg, folder)}")


def _template(cfg: DictConfig) -> None:
    from omegaconf import OmegaConf

    from wsss_affinity.data.folder import write_label_template

    if OmegaConf.is_missing(cfg.data, "root"):
        raise WSSSError("data.root is not set; give the folder of the photographs")
    path = write_label_template(cfg.data.root, cfg.data.get("labels", "labels.csv"))
    print(f"{path} is written; fill in its column `labels` (class names, separated by spaces)")


_MODE_FUNCTIONS = {"run": _run, "predict": _predict, "template": _template}

if __name__ == "__main__":
    main()
