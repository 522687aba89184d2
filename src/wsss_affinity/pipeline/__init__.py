"""Stages, artefacts and the runner that puts them together."""

from wsss_affinity.pipeline.runner import RunResult, StageResult, run_pipeline

__all__ = ["RunResult", "StageResult", "run_pipeline"]
