"""A section of the GPU benchmark with a row that hangs and one that dies; imports no torch."""

import os
import time

ROWS = ("good", "hangs", "after it", "dies", "last")


def run(job):
    for name in ROWS:
        if not job.begin("watchdog", {"size": 1}, name, patience=0.5):
            continue
        if name == "hangs":
            time.sleep(60)
        if name == "dies":
            os._exit(3)
        job.row("watchdog", {"size": 1}, name, ms=1.0, p20=1.0, p80=1.0)
