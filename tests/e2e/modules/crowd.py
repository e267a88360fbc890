"""Starts a command many times at once; tells how each one ended, and what is left when all have."""

import json
import os
import subprocess
import sys
import time

PATIENCE = 10
PLACES = ("/dev/shm", "/run", "/tmp", "/var/tmp")
# Without what CPython sets for its children where it coerces the locale: these are the container's own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LC_CTYPE"}


def files():
    return {f"{place}/{name}" for place in PLACES for name in os.listdir(place) if "criu" in name}


def processes():
    # The first process of a container is everybody's parent.
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return {f"process {pid}" for pid in pids - {os.getpid()}}


def start(command):
    try:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)
    except OSError as error:
        return error


def end(process):
    if isinstance(process, OSError):
        return {"status": None, "out": "", "err": str(process)}
    out, err = process.communicate(timeout=100)
    return {"status": process.returncode, "out": out, "err": err}


def main():
    count, *command = sys.argv[1:]
    # CRIU's knowledge of the kernel is meant to stay.
    kept = {f"{place}/preloaded-criu-{os.getuid()}" for place in PLACES}
    kept |= {f"{place}/preloaded-criu" for place in PLACES} | {"/run/criu.kdat"}
    before = files() | kept
    started = [start(command) for _ in range(int(count))]
    outcomes = [end(process) for process in started]
    deadline = time.monotonic() + PATIENCE
    while left := (files() - before) | processes():
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    json.dump({"outcomes": outcomes, "left": sorted(left)}, sys.stdout)


main()
