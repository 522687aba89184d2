"""Runs the command line and kills it in the middle: `die_after.py LOG STAGE COUNT overrides…`.

Every file that is renamed into place is noted in LOG, hidden ones aside, which hold times. After
COUNT of them in STAGE's unfinished artefact, by one process, all processes of the run get SIGKILL.
STAGE `any` counts those of all stages, `none` never kills.
"""

import os
import signal
import sys

replace = os.replace


def dying_replace(log, stage, count):
    main_pid = os.getpid()
    seen = 0

    def note_and_replace(source, target, **kwargs):
        nonlocal seen
        replace(source, target, **kwargs)
        parts = str(target).split(os.sep)
        if "artifacts" not in parts or parts[-1].startswith("."):
            return
        where = parts[parts.index("artifacts") + 1 :]
        with open(log, "a") as file:
            file.write("/".join([where[0], *where[2:]]) + "\n")
        if stage in (where[0], "any") and where[1].endswith(".partial"):
            seen += 1
            if seen == count:
                os.kill(main_pid, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    return note_and_replace


if __name__ == "__main__":
    log, stage, count, *overrides = sys.argv[1:]
    os.replace = dying_replace(log, stage, int(count))
    sys.argv = ["wsss-affinity", *overrides]

    from wsss_affinity.cli import main

    main()
