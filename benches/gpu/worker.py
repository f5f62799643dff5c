"""The process of a section: waits for its order, runs the cases, sends lines of JSON.

The runner starts the next process while a section still runs, so that imports cost no time.
"""

import importlib
import json
import os
import sys

from benches.gpu.job import Job, Order


def main(warm: bool) -> None:
    """Read an order from stdin and run it; without one, end."""
    # The runner reads what was stdout. What libraries print goes to stderr from here on.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if warm:
        importlib.import_module("benches.gpu.measure")
    line = sys.stdin.readline()
    if not line:
        return
    job = Job(Order(**json.loads(line)), lines)
    section = importlib.import_module(job.order.module)
    if hasattr(section, "run"):
        section.run(job)
    else:
        importlib.import_module("benches.gpu.measure").run(job, section.cases)
    job.send(end=True)


if __name__ == "__main__":
    main("--warm" in sys.argv)
