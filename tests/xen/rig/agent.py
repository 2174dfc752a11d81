# SPDX-License-Identifier: Apache-2.0
"""dom0's end of the link to the host: runs the host's commands, one after another. ``agent.py /dev/vportNp1``

Both directions are JSON, one object a line. From the host ``{"run": "text for bash", "seconds": N}``; back come
``{"out": "…"}`` with what it prints, as it prints, and ``{"status": N}``: its exit status, 124 after N seconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time


def say(port: int, **message: object) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port, data) :]


def run(port: int, command: str, seconds: float) -> int:
    job = subprocess.Popen(
        ["/bin/bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert job.stdout is not None
    end = time.monotonic() + seconds
    handle = os.pidfd_open(job.pid)
    try:
        over = False
        while not over:
            ready, _, _ = select.select([job.stdout.fileno(), handle], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
                return 124
            # A daemon that the command left behind may hold the pipe: the command's own end is the end.
            over = handle in ready and job.stdout.fileno() not in ready
            if job.stdout.fileno() in ready:
                data = os.read(job.stdout.fileno(), 65536)
                over = not data
                if data:
                    say(port, out=data.decode("latin-1"))
        status = job.wait()
        return status if status >= 0 else 128 - status
    finally:
        os.close(handle)
        job.stdout.close()


def main(path: str) -> None:
    port = os.open(path, os.O_RDWR)
    data = b""
    while True:
        more = os.read(port, 65536)
        if not more:  # nobody is connected at the host's end; the port has no event for it
            time.sleep(0.05)
            continue
        *lines, data = (data + more).split(b"\n")
        for line in lines:
            job = json.loads(line)
            say(port, status=run(port, job["run"], job["seconds"]))


if __name__ == "__main__":
    main(sys.argv[1])
