# SPDX-License-Identifier: Apache-2.0
"""Xen's toolstack as a child process: every call has a deadline, and none outlives its caller.

``xl`` exits with 0 also after failures, so callers look at the domain afterwards (``hypervisor``); and it names
domains by number or by name in the same place, so callers give numbers only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final, NamedTuple

from backends.xen.faults import explain
from runphi_async.errors import BackendError

#: Seconds for a call that only asks or flips a switch; a fifth of a second on idle, emulated hardware.
SHORT: Final = 30.0
#: Seconds for making or destroying a domain: hotplug scripts and device models take part.
LONG: Final = 240.0
#: Executes xl so that it is killed when we are: a create that outlived a killed supervisor would make its domain
#: after the next one has looked for it.
DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")


class Answer(NamedTuple):
    """How a call ended."""

    status: int
    out: str
    err: str


class Xl:
    """Runs ``xl``.

    :param program: path or name of xl.
    """

    def __init__(self, program: str) -> None:
        self._program = program

    async def run(self, *words: str, seconds: float = SHORT, cwd: str = "/", wrapper: tuple[str, ...] = ()) -> Answer:
        """Run xl and return what it said; it is killed at the deadline and when the caller is cancelled.

        :param wrapper: what executes xl.
        :raises BackendError: it cannot be executed, or did not end in time.
        """
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *wrapper,
                self._program,
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=environment,
                cwd=cwd,
            )
        except OSError as exc:
            raise BackendError(
                f"cannot run {self._program}: {(exc.strerror or str(exc)).lower()}",
                "apt-get install xen-utils in dom0, or set xen.xl in the configuration",
            ) from exc
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate()
        except TimeoutError as exc:
            raise BackendError(f"cannot run xl {words[0]}: it did not end in {seconds:.0f} s") from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        assert process.returncode is not None
        return Answer(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    async def create(self, config: str, cwd: str) -> None:
        """Make a domain, paused, and leave nobody behind to watch it.

        :raises BackendError: it failed; libxl's text is put into words.
        """
        answer = await self.run("create", "-q", "-e", "-p", config, seconds=LONG, cwd=cwd, wrapper=DIES_WITH_US)
        if answer.status != 0:
            raise explain("create the domain", answer.err, answer.status)

    async def must(self, what: str, *words: str, seconds: float = SHORT, cwd: str = "/") -> str:
        """Run xl and return its output.

        :param what: the step, for the message when it fails.
        :raises BackendError: it failed; libxl's text is put into words.
        """
        answer = await self.run(*words, seconds=seconds, cwd=cwd)
        if answer.status != 0:
            raise explain(what, answer.err, answer.status)
        return answer.out
