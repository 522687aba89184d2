"""Runs the command line under a clock that jumps by decades: `jumping_clock.py LOG overrides…`.

Its locks see every other process as one on another computer, which shows signs of life alone.
Renames are noted as by `die_after.py`.
"""

import os
import random
import runpy
import sys
import time
from pathlib import Path

wall_clock = time.time

if __name__ == "__main__":
    time.time = lambda: wall_clock() + random.choice([-1, 0, 1]) * 1e9

    from wsss_affinity.pipeline import lock, owner

    here = f"computer {os.getpid()}"
    owner._machine = lambda: here
    lock.BEAT, lock.PATIENCE = 0.2, 15.0

    driver = Path(__file__).with_name("die_after.py")
    log, *overrides = sys.argv[1:]
    sys.argv = [str(driver), log, "none", "0", *overrides]
    runpy.run_path(str(driver), run_name="__main__")
