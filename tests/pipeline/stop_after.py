"""Runs the command line and asks it to stop in the middle: `stop_after.py SIGNAL STAGE COUNT …`.

After COUNT files of STAGE's unfinished artefact were renamed into place by one process, the signal
goes to the whole group of processes, as Ctrl-C and Slurm do it.
"""

import os
import signal
import sys

replace = os.replace


def telling_replace(number, stage, count):
    seen = 0

    def replace_and_tell(source, target, **kwargs):
        nonlocal seen
        replace(source, target, **kwargs)
        parts = str(target).split(os.sep)
        kept = stage in parts and not parts[-1].startswith(".")
        if kept and parts[parts.index(stage) + 1].endswith(".partial"):
            seen += 1
            if seen == count:
                os.killpg(0, number)

    return replace_and_tell


if __name__ == "__main__":
    number, stage, count, *overrides = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    os.replace = telling_replace(signal.Signals[number], stage, int(count))
    sys.argv = ["wsss-affinity", *overrides]

    from wsss_affinity.cli import main

    main()
