# SPDX-License-Identifier: Apache-2.0
"""What is known of a guest that failed: gathered while it lives, because its record goes with the container.

A thread holds the files of every record open from its first moment. They are appended to and never replaced, so what
they say can be read when `ctr run` has long removed the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.base import Finding, Level
from runphi_async.doctor.report import process_state, tail
from runphi_async.testing.containerd import POLL, RUNPHI
from runphi_async.testing.quickstart.causes import LINUX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runphi_async.testing.containerd import PrivateContainerd
    from runphi_async.testing.quickstart.causes import Facts

#: files of a record that are only appended to
KEPT: Final = ("events.jsonl", "vmm.log", "ev.log", "fs.log", "vmm.pid", "kernel.log")
#: bytes read of each of them
ENOUGH: Final = 64 << 10
#: lines shown of each
LAST_WORDS: Final = 8
#: longest time QEMU's monitor may take for an answer; a hung one gives none
MONITOR_PATIENCE: Final = 3.0
#: longest time `runphi doctor` may take, a proof of the accelerator included
DOCTOR_PATIENCE: Final = 60.0
#: the chardev that keeps a Linux guest's kernel log, and its size; see backends/qemu/comm.py
KERNEL_LOG: Final = ("klog", 65536)
#: the event of a guest that KVM failed and that was started once more without it
FALLBACK: Final = "accel-fallback"
#: what virtiofsd says when all is well
FILE_SERVER_CHATTER: Final = "virtio_"
_ID: Final = "runphi-quickstart"


class Trace(NamedTuple):
    """What is left of one container."""

    name: str
    directory: Path
    fds: dict[str, int]
    plan: list[str]


class Witness:
    """Watches the records below a run directory until it is closed."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._traces: dict[str, Trace] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            self.look()

    def look(self) -> None:
        """Takes hold of what is new; neither records nor files in them send an event to people outside."""
        with self._lock, contextlib.suppress(OSError):
            for entry in os.scandir(self._run_dir):
                if not entry.is_dir(follow_symlinks=False) or entry.name.startswith("~"):
                    continue
                trace = self._traces.setdefault(entry.name, Trace(entry.name, Path(entry.path), {}, []))
                for name in KEPT:
                    if name not in trace.fds:
                        with contextlib.suppress(OSError):
                            trace.fds[name] = os.open(trace.directory / name, os.O_RDONLY | os.O_CLOEXEC)
                if not trace.plan:
                    with contextlib.suppress(OSError):
                        trace.plan.append((trace.directory / f"config{entry.name}.conf").read_text(errors="replace"))

    def forget(self, name: str) -> None:
        """A new container of that name comes."""
        with self._lock:
            trace = self._traces.pop(name, None)
            for fd in trace.fds.values() if trace is not None else ():
                os.close(fd)

    def text(self, name: str, file: str) -> str:
        """What a file of a container's record says, or said."""
        self.look()
        with self._lock:
            trace = self._traces.get(name)
            if trace is None or file not in trace.fds:
                return ""
            fd = trace.fds[file]
            start = max(0, os.fstat(fd).st_size - ENOUGH)
            return os.pread(fd, ENOUGH, start).decode(errors="replace")

    def fallback(self, name: str) -> str:
        """Why a guest was started once more without KVM, "" when it was not."""
        reasons = [str(e.get("reason")) for e in self.events(name) if e.get("event") == FALLBACK]
        return reasons[-1] if reasons else ""

    def accel(self, name: str) -> str:
        """The accelerator a guest runs on: that of its plan, unless it was started once more; "" when it has none."""
        if self.fallback(name):
            return "tcg"
        with self._lock:
            trace = self._traces.get(name)
            found = re.search(r"-accel '?(kvm|tcg)", trace.plan[0]) if trace is not None and trace.plan else None
        return found[1] if found else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a container."""
        found = []
        for line in self.text(name, "events.jsonl").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def ask(self, name: str, command: str, **arguments: object) -> object:
        """Asks the monitor of a guest that lives; None: it does not answer.

        The question goes into the FIFO of QEMU's second monitor, whose answers the supervisor writes down: the first
        one belongs to the supervisor alone.
        """
        trace = self._traces.get(name)
        if trace is None:
            return None
        question = {"execute": command, "id": f"{_ID}-{time.monotonic_ns()}"}
        if arguments:
            question["arguments"] = arguments  # type: ignore[assignment]
        try:
            fd = os.open(trace.directory / "ev.in", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            os.write(fd, json.dumps(question).encode() + b"\n")
        except OSError:
            return None
        finally:
            os.close(fd)
        end = time.monotonic() + MONITOR_PATIENCE
        while time.monotonic() < end:
            for line in reversed(self.text(name, "ev.log").splitlines()):
                with contextlib.suppress(ValueError):
                    answer = json.loads(line)
                    if answer.get("id") == question["id"]:
                        return answer.get("return")
            time.sleep(POLL)
        return None

    def close(self) -> None:
        """Lets go of everything."""
        self._over.set()
        self._thread.join()
        for name in list(self._traces):
            self.forget(name)


class Story(NamedTuple):
    """A failure as it is told: the facts, and what is shown to people."""

    facts: Facts
    lines: tuple[str, ...]


def gather(witness: Witness, engine: PrivateContainerd, name: str, facts: Facts) -> Story:
    """Adds to ``facts`` whatever can be learnt of a container; never fails."""
    witness.look()
    events = witness.events(name)
    end: dict[str, Any] = next((event for event in reversed(events) if event.get("event") == "exit"), {})
    vmm_log = witness.text(name, "vmm.log")
    pid = witness.text(name, "vmm.pid").strip()
    state, running = "", False
    if pid.isdigit() and not end:
        process = process_state(int(pid))
        running = process != "gone"
        answer = witness.ask(name, "query-status") if running else None
        state = str(answer.get("status", "")) if isinstance(answer, dict) else ""
    kernel = ""
    if running:
        chardev, size = KERNEL_LOG
        answer = witness.ask(name, "ringbuf-read", device=chardev, size=size)
        kernel = answer if isinstance(answer, str) else ""
    kernel = kernel or witness.text(name, "kernel.log") or _kernel_in(str(end.get("reason") or ""))
    logs = {what: "\n".join(tail(str(path), 8192)) for what, path in _logs(engine).items()}
    facts = facts._replace(
        reason=str(end.get("reason") or ""),
        code=end.get("code"),
        events=tuple(str(event.get("event")) for event in events),
        accel=witness.accel(name),
        vmm_state=state,
        vmm_log=vmm_log,
        kernel=kernel,
        findings=tuple(findings(engine.client_env)),
        supervisor_log=logs["supervisor"],
        engine_log=logs["containerd"],
        release=release(),
    )
    shown = {
        "the guest's kernel": kernel or ("(none)" if running and facts.what == LINUX else ""),
        "QEMU": vmm_log,
        "the file server": "\n".join(
            line for line in witness.text(name, "fs.log").splitlines() if not line.startswith(FILE_SERVER_CHATTER)
        ),
        "the supervisor's log": facts.supervisor_log,
        "containerd's log": facts.engine_log if not events else "",
    }
    lines = [_state_line(facts, pid, running)] if events else ["no guest was made"]
    for who, text in shown.items():
        words = [line for line in text.splitlines() if line.strip()][-LAST_WORDS:]
        lines += [f"last words of {who}:", *(f"  {line.rstrip()}" for line in words)] if words else []
    lines += [
        f"doctor: {f.level}: {f.area}: {f.text}" for f in facts.findings if f.level in (Level.ERROR, Level.WARNING)
    ]
    return Story(facts, tuple(lines))


def _kernel_in(reason: str) -> str:
    """The guest kernel's last lines at the end of a reason, where the runtime has put them."""
    _, found, lines = reason.partition("; its last lines: ")
    return "\n".join(lines.split(" | ")) if found else ""


def _state_line(facts: Facts, pid: str, running: bool) -> str:
    on = f" on {facts.accel}" if facts.accel else ""
    if running:
        answer = facts.vmm_state or "its monitor does not answer"
        return f"the guest's QEMU{on}: pid {pid}, {process_state(int(pid))}; run state: {answer}"
    if facts.reason:
        return f"the guest{on} ended with exit code {facts.code}: {facts.reason}"
    return f"the guest's QEMU{on} is gone; its events: {' '.join(facts.events) or 'none'}"


def _logs(engine: PrivateContainerd) -> dict[str, Path]:
    return {"supervisor": engine.run_dir / "supervisor.log", "containerd": engine.log}


def findings(env: Mapping[str, str]) -> list[Finding]:
    """What ``runphi doctor`` says here; one ERROR when it says nothing."""
    try:
        done = subprocess.run(
            [RUNPHI, "doctor", "--json"], env=dict(env), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=DOCTOR_PATIENCE, check=False,
        )  # fmt: skip
        return [Finding(Level(f["level"]), f["area"], f["text"], f["mend"]) for f in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        return [Finding(Level.ERROR, "runphi", f"`runphi doctor` does not end within {DOCTOR_PATIENCE:g} s")]
    except (OSError, ValueError, KeyError, TypeError):
        return [Finding(Level.ERROR, "runphi", "`runphi doctor` cannot be run here")]


def release() -> str:
    """The number of the Debian release, "" elsewhere."""
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        return ""
    return found.get("VERSION_ID", "") if found.get("ID") == "debian" else ""
