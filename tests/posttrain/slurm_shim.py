"""Stands in for ``srun`` and ``scontrol``: the nodes of the job are addresses of this machine.

srun [--nodelist=A,B] [--ntasks-per-node=N] [--output=FILE with %t] [other flags] COMMAND...
scontrol show hostnames A,B
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def srun(arguments):
    flags = {}
    while arguments[0].startswith("--"):
        name, _, value = arguments.pop(0)[2:].partition("=")
        flags[name] = value
    nodes, per_node = flags["nodelist"].split(","), int(flags["ntasks-per-node"])
    assert len(nodes) == int(flags["nodes"])
    tasks = []
    for number in range(len(nodes) * per_node):
        own = {
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number % per_node),
            "SLURMD_NODENAME": nodes[number // per_node],
        }
        with Path(flags["output"].replace("%t", str(number))).open("wb") as output:
            tasks.append(subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, env=os.environ | own
            ))  # fmt: skip
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    while any(task.poll() is None for task in tasks):
        if asked:  # as Slurm does: the signal goes to every task
            for task in tasks:
                task.terminate()
        time.sleep(0.1)
    return 0 if asked else max(abs(task.returncode) for task in tasks)


if __name__ == "__main__":
    if sys.argv[1] == "scontrol":
        print("\n".join(sys.argv[4].split(",")))
    else:
        raise SystemExit(srun(sys.argv[2:]))
