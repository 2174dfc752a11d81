# SPDX-License-Identifier: Apache-2.0
"""The suite ``xen`` of bin/test: boots a machine with real Xen, installs the checkout in dom0, runs the tests there.

``python -m tests.xen [--measure] [--junitxml FILE] [pytest arguments]``; the machine is gone at the end in any case.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.xen.install import HOME, pack
from tests.xen.machine import DIRECTORY, Machine, MachineError, write

BUILD = Path(__file__).resolve().parent / "rig" / "build.sh"
#: Seconds all tests may take together in dom0.
TESTS_SECONDS = 1500.0
INSTALL = f"""
set -e
mkdir -p {HOME} && tar -C {HOME} -xf /host/runphi.tar && ln -s {HOME}/venv {HOME}/.venv
{HOME}/bin/runphi --version
"""


def main() -> int:
    """Return pytest's exit status, 1 when it did not get that far."""
    parser = argparse.ArgumentParser(prog="python -m tests.xen")
    parser.add_argument("--junitxml", type=Path)
    parser.add_argument("--measure", action="store_true", help="measure instead: create to first byte against xl")
    given, rest = parser.parse_known_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        write(f"[{time.monotonic() - begun:3.0f}s] {text}\n")

    say(f"the machine's disk: {DIRECTORY}")
    subprocess.run([str(BUILD), str(DIRECTORY)], check=True)
    with tempfile.TemporaryDirectory(prefix="xen-share-") as name:
        share = Path(name)
        say("packing the checkout's wheel")
        pack(share)
        say("booting Xen and dom0, in software emulation")
        machine = Machine(share)
        try:
            machine.boot()
            say("dom0 answers; installing")
            if machine.run(INSTALL, 300) != 0:
                say("cannot install the wheel in dom0")
                return 1
            if given.measure:
                return machine.run(f"cd {HOME} && venv/bin/python -m tests.xen.dom0.measure", TESTS_SECONDS)
            say("running the tests in dom0")
            pytest = [f"{HOME}/venv/bin/python", "-m", "pytest", "tests/xen/dom0", "--junitxml=/host/result.xml",
                      "-p", "no:cacheprovider", "--color=no", "--durations=10", *rest]  # fmt: skip
            status = machine.run(f"cd {HOME} && {shlex.join(pytest)}", TESTS_SECONDS)
            result = share / "result.xml"
            if given.junitxml is not None and result.exists():
                given.junitxml.write_bytes(result.read_bytes())
            say(f"the tests ended with {status}")
            return status
        except MachineError as exc:
            say(f"the machine failed: {exc}")
            return 1
        finally:
            machine.close()
            say("the machine is off")


if __name__ == "__main__":
    sys.exit(main())
