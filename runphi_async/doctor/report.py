# SPDX-License-Identifier: Apache-2.0
"""The report of ``runphi doctor --report``: all that helps to understand a failure, to be attached to a bug.

It reads records, logs and the kernel's own files as they lie there, so it also works without a supervisor. What it
shows of strangers goes through ``doctor_text``; environments and arguments of containers are not in it at all.
"""

from __future__ import annotations

import glob
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import msgspec

from backends.qemu.settings import ACCEL_VARIABLE
from runphi_async.config.loading import DEFAULT_PATH, PATH_VARIABLE
from runphi_async.config.words import changed
from runphi_async.doctor import checkup
from runphi_async.doctor import text as doctor_text
from runphi_async.doctor.text import Section
from runphi_async.doctor.versions import versions
from runphi_async.errors import RunphiError
from runphi_async.lifeline import stub
from runphi_async.operations.timeline import safe, stamp
from runphi_async.record import store
from runphi_async.terminals.consolelogs import plans, raw_directory
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.base import Finding
    from runphi_async.config.schema import Config
    from runphi_async.record.store import Record

#: Bytes read of the end of a log, and of a small file.
TAIL: Final = 48 << 10
SMALL: Final = 16 << 10
#: Containers that are shown, the newest; each takes at most four parts of ``PART`` bytes.
CONTAINERS: Final = 24
PART: Final = 6 << 10
#: Where proofs of an accelerator are kept for all supervisors, the variable that names another place, and their size.
PROOFS: Final = "/run/runphi"
PROOFS_VARIABLE: Final = "RUNPHI_PROOFS"
PROOF_MAX: Final = 256 << 10
#: Annotations of ours; those of engines and pods may hold whole documents, environments among them.
_OURS: Final = "org.runphi."
#: What an event tells of a console; shown only with consoles.
_CONSOLE_WORDS: Final = ("line", "kernel", "words")


class Case(NamedTuple):
    """What a report is made of.

    :ivar config: what is in force: as the supervisor has read it, or the defaults.
    :ivar problem: what is wrong with the configuration file now, "" when nothing is.
    """

    config: Config
    problem: str
    run_dir: str
    findings: tuple[Finding, ...]
    with_consoles: bool = False


async def make(case: Case) -> bytes:
    """Return the report."""
    programs = await versions(case.config)
    return await anyio.to_thread.run_sync(compose, case, programs)


def compose(case: Case, programs: Sequence[str]) -> bytes:
    """Read what there is and return the report (blocks)."""
    names, hidden = read_containers(case.run_dir)
    shown = names[:CONTAINERS]
    sections = [
        Section("Findings", tuple(checkup.as_text(case.findings).splitlines())),
        Section("Versions", tuple(programs)),
        Section("Accelerator", tuple(accelerator(case.run_dir))),
        Section("Configuration", tuple(configuration(case))),
        Section("Cgroups", tuple(cgroups())),
        Section("Limits", tuple(limits(case.config, case.run_dir))),
        Section("Containers", tuple(overview(names, len(shown))), foreign=True),
    ]
    for record in shown:
        sections += container(record, case)
    log_file = case.config.supervisor.log_file or os.path.join(case.run_dir, "supervisor.log")
    sections.append(Section(f"Log of the supervisor: {log_file}", tuple(tail(log_file)), foreign=True, last=True))
    head = (
        f"# runPHI report\n\nMade {stamp(time.time_ns())} by runPHI async {VERSION}. It holds no environment and no"
        " arguments of containers;\nwhat looks like a credential is masked. Look through it before you publish it.\n"
    )
    return doctor_text.render(head, sections, doctor_text.Secrets(hidden))


# Section: the parts


def configuration(case: Case) -> list[str]:
    """Say what is configured, as far as it is not the default."""
    path = os.environ.get(PATH_VARIABLE) or DEFAULT_PATH
    lines = [f"file: {path}" + ("" if os.path.exists(path) else " (not there)"), f"run directory: {case.run_dir}"]
    if case.problem:
        lines.append(f"NOT USABLE: {case.problem}")
    if os.environ.get(ACCEL_VARIABLE):
        lines.append(f"${ACCEL_VARIABLE} = {os.environ[ACCEL_VARIABLE]}")
    return [*lines, "in force:", *(changed(case.config) or ["every key has its default"])]


def accelerator(run_dir: str) -> list[str]:
    """Show what was proven, and what the kernel says of it."""
    lines = []
    for place in dict.fromkeys((run_dir, os.environ.get(PROOFS_VARIABLE) or PROOFS)):
        for path in sorted(glob.glob(os.path.join(glob.escape(place), "accel*"))):
            lines += [f"{path}:", *_indented("".join(tail(path, PROOF_MAX)))]
    if not lines:
        lines.append("no proof is kept on this boot")
    modules = [line.split()[0] for line in tail("/proc/modules", 1 << 20) if line.startswith("kvm")]
    lines.append(f"modules: {' '.join(modules) or 'no kvm'}")
    cpu = [line for line in tail("/proc/cpuinfo", SMALL, first=True) if line.startswith(("model name", "CPU part"))]
    return lines + cpu[:1]


def _indented(text: str) -> list[str]:
    """Return a document of JSON with a line for each of its parts; other text as it is."""
    try:
        return msgspec.json.format(text.encode("utf-8", "replace")).decode().splitlines()
    except msgspec.MsgspecError:
        return [text]


def cgroups() -> list[str]:
    """Show which hierarchies are mounted, and where we are in them."""
    mounts = [line for line in tail("/proc/self/mountinfo", 1 << 18) if " - cgroup" in line]
    own = tail("/proc/self/cgroup", SMALL)
    controllers = tail("/sys/fs/cgroup/cgroup.controllers", SMALL)
    return [*mounts, "of this process:", *own, "controllers of v2:", *controllers]


def limits(config: Config, run_dir: str) -> list[str]:
    """Show limits of this process, memory, and the room in our directories."""
    lines = tail("/proc/self/limits", SMALL)
    lines += [line for line in tail("/proc/meminfo", SMALL) if line.startswith(("Mem", "Swap", "Commit"))]
    for path in (run_dir, config.log.dir, "/dev/shm", "/var/lib/runphi", "/tmp"):
        try:
            room = os.statvfs(path)
        except OSError as exc:
            lines.append(f"{path}: {exc.strerror}")
        else:
            lines.append(f"{path}: {room.f_bavail * room.f_frsize >> 20} MiB and {room.f_favail} files free")
    return lines


def overview(records: Sequence[Record], shown: int) -> list[str]:
    """List the containers; the newest are shown in full."""
    lines = [f"{r.name}: {r.backend}, {r.status}{_ended(r)}" for r in records]
    return lines + ([f"(the newest {shown} are shown below)"] if shown < len(records) else [])


def _ended(record: Record) -> str:
    return f", exit code {record.exit_code}: {record.reason}" if record.exit_code is not None else ""


def container(record: Record, case: Case) -> list[Section]:
    """Show one container."""
    directory = os.path.join(case.run_dir, record.name)
    name = record.name
    parts = [
        (f"Container {name}", [*facts(record), *_vmm(directory), *_plan(directory, name)], False),
        (f"Container {name}: last events", events(tail(os.path.join(directory, "events.jsonl")), case), True),
        (f"Container {name}: what its VMM said", tail(os.path.join(directory, stub.VMM_LOG)), True),
    ]
    if case.with_consoles:
        logs = raw_directory(plans(record))
        console = tail(os.path.join(logs, "console.log")) if logs is not None else ["no raw log is kept"]
        kernel = os.path.join(directory, "kernel.log")
        console += ["", "its kernel said:", *tail(kernel, SMALL)] if os.path.exists(kernel) else []
        parts.append((f"Container {name}: the end of its console", console, True))
    return [Section(title, tuple(lines), foreign=True, last=last, limit=PART) for title, lines, last in parts]


def facts(record: Record) -> list[str]:
    """Show a record without what a container was started with."""
    times = {"created": record.created, "started": record.started, "finished": record.finished}
    lines = [f"{record.backend}, {record.status}{_ended(record)}"]
    lines += [f"{what}: {stamp(int(when * 1e9))}" for what, when in times.items() if when is not None]
    lines += [
        f"terminal: {record.terminal}, ran: {record.booted}, killed by: {record.killed_by}, boot: {record.boot}",
        f"init process: {record.pid}, cgroup: {record.cgroup}",
        f"root: {record.root}, bundle: {record.bundle}",
    ]
    return lines + [f"{key} = {text}" for key, text in sorted(record.annotations.items()) if key.startswith(_OURS)]


def _vmm(directory: str) -> list[str]:
    """Say how the hypervisor's process is, and what events it sent last."""
    pid, status = stub.read_pid(directory), stub.read_status(directory)
    if pid is None:
        return []
    lines = [f"VMM: pid {pid}, " + (f"ended with {status}" if status is not None else process_state(pid))]
    names = [_field(line, "event") for line in tail(os.path.join(directory, "ev.log"))]
    last = [name for name in names if name][-5:]
    return [*lines, *([f"its last events: {' '.join(last)}"] if last else [])]


def process_state(pid: int) -> str:
    """Say whether a process lives and what it has used. Source: proc(5), /proc/pid/stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "gone"
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return f"state {fields[0].decode()}, {int(fields[17])} threads, {seconds:.1f} s of CPU time"


def _field(line: str, key: str) -> str:
    try:
        found = msgspec.json.decode(line, type=dict[str, Any]).get(key)
    except msgspec.MsgspecError:
        return ""
    return found if isinstance(found, str) else ""


def _plan(directory: str, name: str) -> list[str]:
    """Show why the partition is as it is, without the VMM's command line, which holds the guest's."""
    lines = tail(os.path.join(directory, f"config{name}.conf"), first=True)
    end = next((i for i, line in enumerate(lines) if line.startswith(("argv", "cmdline"))), len(lines))
    return lines[:end]


def events(lines: Sequence[str], case: Case) -> list[str]:
    """Show events as words; what they tell of a console only if consoles are asked for."""
    shown = []
    for line in lines:
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
            when = stamp(int(float(event.pop("time")) * 1e9))
            kind = str(event.pop("event"))
        except (msgspec.MsgspecError, KeyError, ValueError, TypeError, OverflowError, OSError):
            continue  # the first one of a tail is cut
        event.pop("seq", None)
        words = {k: v for k, v in event.items() if case.with_consoles or k not in _CONSOLE_WORDS}
        shown.append(" ".join([when, kind, *(f"{key}={value}" for key, value in words.items())]))
    return shown


# Section: reading


def read_containers(run_dir: str) -> tuple[list[Record], list[str]]:
    """Return the records, newest first, and the values of all their environments."""
    records: list[Record] = []
    hidden: list[str] = []
    kept = store.Store(run_dir)
    try:
        names = kept.names()
    except OSError:
        return [], []
    for name in names:
        record = kept.load(name)
        if record is not None:
            records.append(record)
        hidden += _environment(os.path.join(run_dir, name, "config.json"))
    return sorted(records, key=lambda record: record.created, reverse=True), hidden


def _environment(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            process = msgspec.json.decode(file.read(1 << 22), type=dict[str, Any]).get("process") or {}
        entries = process.get("env") or []
        # arguments are shown nowhere, but programs print them
        words = (process.get("args") or [])[1:]
        return doctor_text.environment(map(str, entries)) + [w for w in map(str, words) if len(w) >= 8]
    except (OSError, msgspec.MsgspecError, AttributeError, TypeError):
        return []


def tail(path: str, size: int = TAIL, *, first: bool = False) -> list[str]:
    """Return the lines at the end (or the beginning) of a regular file; a reason in brackets where there are none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        return [f"({path}: {(exc.strerror or str(exc)).lower()})"]
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return [f"({path} is no file)"]
        skipped = 0 if first else max(0, info.st_size - size)
        try:
            file.seek(skipped)
            data = file.read(size)
        except OSError as exc:
            return [f"({path}: {exc.strerror})"]
    lines = data.decode("utf-8", "replace").splitlines()
    return lines[1:] if skipped else lines  # half a line may be half a secret


# Section: writing


def save(path: str, data: bytes) -> None:
    """Write a report: complete or not at all, for its owner only, and never through a link.

    :raises RunphiError: it cannot be written there.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as exc:
        raise RunphiError(f"cannot write the report {path}: {(exc.strerror or str(exc)).lower()}") from exc
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no ordinary file"
        raise RunphiError(f"cannot write the report {path}: it is {kind}", "give another name, or - to print it")
    temporary = f"{path}.{secrets.token_hex(4)}.new"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise RunphiError(f"cannot write the report {path}: {(exc.strerror or str(exc)).lower()}") from exc
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as exc:
        os.unlink(temporary)
        raise RunphiError(f"cannot write the report {path}: {(exc.strerror or str(exc)).lower()}") from exc


def made(path: str, data: bytes) -> str:
    """Return what is printed of a report that was written."""
    return f"wrote {safe(path)}: {(len(data) + 1023) >> 10} KiB; look through it before you publish it\n"
