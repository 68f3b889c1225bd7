"""The command line as a process of its own."""

import os
import subprocess
import sys

COMMAND = [sys.executable, "-m", "etastar"]


def run(*arguments, **keywords):
    """Finished process with its texts; the working directory stays as it was unless a test looks at it."""
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 120, "check": False}
    return subprocess.run([*COMMAND, *map(str, arguments)], **(options | keywords))


def group_members(group):
    """Processes of a process group that are still at work."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                state, _, of_group = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(pid))
    return found
