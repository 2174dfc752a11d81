# SPDX-License-Identifier: Apache-2.0
"""The short verbs against the bare interpreter, and the whole life of a bare-metal guest against runc's."""

from __future__ import annotations

import functools
import os
import re
import select
import shlex
import socket
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Final

from bench.measure import BenchError, in_turns, timed
from bench.place import await_end
from bench.table import Row, compared

if TYPE_CHECKING:
    from pathlib import Path

    from bench.place import Place

BARE: Final = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
VERB_GOAL: Final = 1.5
CYCLE_GOAL: Final = 2.0
_PATIENCE: Final = 20.0
_REST: Final = 0.15


class Cycle:
    """create, start, state, kill, wait and delete with one runtime; keeps the time of every verb."""

    def __init__(self, place: Place, runtime: list[str], name: str, bundle: str) -> None:
        self._env, self._runtime, self._name, self._bundle = place.env, runtime, name, bundle
        self._pid_file = place.path / f"{name}.pid"
        self.verbs: dict[str, list[float]] = {}

    def verb(self, *words: str) -> None:
        """One call of the runtime."""
        self.verbs.setdefault(words[0], []).append(timed([*self._runtime, *words], self._env))

    def create(self) -> int:
        """Creates the container; returns its pid."""
        self.verb("create", "--bundle", self._bundle, "--pid-file", str(self._pid_file), self._name)
        return int(self._pid_file.read_text())

    def end(self, pid: int) -> None:
        """Kills and deletes it."""
        self.verb("kill", self._name, "KILL")
        await_end(pid)
        self.verb("delete", self._name)

    def calm(self) -> float:
        """The same with a rest after each verb: QEMU, which starts meanwhile, takes no CPU from the next one."""
        pid = self.create()
        time.sleep(_REST)
        self.verb("start", self._name)
        time.sleep(_REST)
        self.end(pid)
        time.sleep(_REST)
        return 0.0

    def __call__(self) -> float:
        begun = time.perf_counter()
        pid = self.create()
        self.verb("start", self._name)
        self.verb("state", self._name)
        self.end(pid)
        return (time.perf_counter() - begun) * 1000


class BareQemu:
    """The same QEMU without any runtime: from its exec to the first byte on the console."""

    def __init__(self, record: Path, directory: Path) -> None:
        (conf,) = record.glob("config?*.conf")
        argv = shlex.split(conf.read_text().partition("\nargv = ")[2].replace("\\\n", " "))
        self._argv = [word for word in argv if word != "-S"]
        self._directory = directory
        directory.mkdir()
        self._fifos: dict[str, int] = {}
        for name in ("con.in", "con.out", "ev.in", "ev.out"):
            os.mkfifo(directory / name)
            self._fifos[name] = os.open(directory / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self) -> float:
        console = self._fifos["con.out"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            path = self._directory / "qmp.sock"
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()
            argv = [re.sub(r"^(socket,id=qmp,fd=)\d+", rf"\g<1>{listener.fileno()}", word) for word in self._argv]
            begun = time.perf_counter()
            process = subprocess.Popen(
                argv,
                cwd=self._directory,
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            came = select.select([console], [], [], _PATIENCE)[0]
            taken = time.perf_counter() - begun
            process.kill()
            process.wait()
        if not came:
            raise BenchError(f"QEMU alone prints nothing: {shlex.join(argv)}")
        for name in ("con.out", "ev.out"):
            _drain(self._fifos[name])
        return taken * 1000

    def close(self) -> None:
        """Closes the FIFOs."""
        for fd in self._fifos.values():
            os.close(fd)


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 65536):
            pass
    except BlockingIOError:
        return


def run(place: Place) -> list[Row]:
    """Measures the verbs."""
    count = 15 if place.quick else 60
    ours = Cycle(place, [place.runphi], "cycle", place.inmate_bundle("cycle"))
    runc = Cycle(place, [place.runc, "--root", str(place.path / "runc")], "plain", place.busybox_bundle("plain"))
    calm = Cycle(place, [place.runphi], "calm", place.inmate_bundle("calm"))
    lasting = Cycle(place, [place.runphi], "lasting", place.inmate_bundle("lasting"))
    pid = lasting.create()
    qemu = BareQemu(place.engine.run_dir / "lasting", place.path / "qemu")
    try:
        lasting.verb("start", "lasting")
        short = {
            "state": [place.runphi, "state", "lasting"],
            "kill 0": [place.runphi, "kill", "lasting", "0"],
            "bare": BARE,
        }
        verbs = in_turns(count, {name: functools.partial(timed, argv, place.env) for name, argv in short.items()})
        whole = in_turns(
            max(6, count // 2),
            {"ours": ours, "runc": runc, "qemu": qemu},
        )
        rested = in_turns(max(6, count // 2), {"calm": calm.calm, "bare": functools.partial(timed, BARE, place.env)})
    finally:
        qemu.close()
        lasting.end(pid)
    rows = [compared(f"`{n}`", verbs[n], verbs["bare"], "bare python3", VERB_GOAL) for n in verbs if n != "bare"]
    for name in ("start", "kill", "delete"):
        taken = statistics.median(calm.verbs[name][1:])
        shown = "kill KILL" if name == "kill" else name
        rows.append(compared(f"`{shown}`", taken, rested["bare"], "bare python3", VERB_GOAL))
    creates = [statistics.median(cycle.verbs["create"][1:]) for cycle in (ours, runc)]
    rows.append(compared("`create`", creates[0], creates[1], "runc", None))
    limit = CYCLE_GOAL * whole["runc"] + whole["qemu"]
    against = f"{whole['runc']:.1f} ms (runc), {whole['qemu']:.1f} ms (QEMU alone to first byte)"
    ratio = f"{(whole['ours'] - whole['qemu']) / whole['runc']:.2f} without QEMU"
    goal = f"≤ {CYCLE_GOAL:g} × runc + QEMU = {limit:.1f} ms"
    what = "create + start + state + kill + wait + delete"
    return [*rows, Row(what, f"{whole['ours']:.1f} ms", against, ratio, goal, whole["ours"] <= limit)]
