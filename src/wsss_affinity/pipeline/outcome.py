"""What becomes of each image of a map stage: stored, tried again, or recorded as failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wsss_affinity.data.source import Problem, Sample
from wsss_affinity.errors import WriteError, WSSSError
from wsss_affinity.pipeline.status import sentence, write_traceback
from wsss_affinity.pipeline.storage import RecordWriter

log = logging.getLogger(__name__)

Work = Callable[[Sample], Any]
#: of an image and what the step before made of it
Step = Callable[[Sample, Any], Any]

#: a stage is stopped when this many images failed and none succeeded, whatever was asked for
_HOPELESS = 20


@dataclass
class Outcome:
    """What became of the images of a stage.

    Attributes:
        name: Of the stage.
        steps: What an image goes through.
        output: Where its records go, by the names under which the last step returns them.
        skip: Whether to go on without an image that failed twice.
        succeeded: How many went through.
        problems: Those that did not.
    """

    name: str
    steps: tuple[Work, Step | None, Step | None]
    output: Mapping[str, RecordWriter]
    skip: bool
    succeeded: int
    problems: list[Problem] = field(default_factory=list)

    def settle(self, sample: Sample, result: Any) -> None:
        """Store what came of an image; one that failed is tried again, from the start.

        Args:
            sample: The image.
            result: Records by name, or the error.

        Raises:
            WSSSError: If it fails again and is not to be skipped, if nothing succeeds, or if a
                record cannot be written.
        """
        if isinstance(result, WriteError):
            raise result
        if isinstance(result, WSSSError):
            log.warning("%s: image %s is tried again (%s)", self.name, sample.id, result)
            try:
                first, *others = self.steps
                result = first(sample)
                for step in others:
                    result = result if step is None else step(sample, result)
            except WriteError:
                raise
            except Exception as error:
                self._record(sample, error)
                return
        for name, data in result.items():
            self.output[name].write(sample.id, data)
        self.succeeded += 1

    def _record(self, sample: Sample, error: Exception) -> None:
        problem = Problem(sample.id, f"{self.name}: {sentence(error)}")
        if not self.skip:
            raise WSSSError(
                f"{told(problem)}; what is finished is kept, and data.on_error=skip leaves out "
                "images that fail twice"
            ) from error
        write_traceback(f"{self.name}: image {sample.id} is left out", error)
        self.problems.append(problem)
        if len(self.problems) == _HOPELESS and not self.succeeded:
            raise WSSSError(
                f"each of the first {_HOPELESS} images failed, the last: {told(problem)}"
            ) from error


def told(problem: Problem) -> str:
    """Say which image failed, where and why."""
    return f"image {problem.id} failed in {problem.message}"


def attempt(step: Callable[..., Any], *arguments: Any) -> Any:
    """Call it; an error is returned, and made anew: its traceback would keep memory alive."""
    try:
        return step(*arguments)
    except WSSSError as error:
        return type(error)(str(error))
    except Exception as error:
        return WSSSError(sentence(error))
