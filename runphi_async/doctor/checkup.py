# SPDX-License-Identifier: Apache-2.0
"""What ``runphi doctor`` looks at: the machine, our own directories, the ordinary runtime, engines and backends.

Gathering is separate from judging: ``facts`` reads the machine, ``judge_…`` are pure and say what it means and how to
mend it. A machine that cannot run one backend is no sick machine: what only some containers need is a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import msgspec

from backends import detect
from backends.base import Finding, Level
from runphi_async import digits
from runphi_async.doctor import machine as doctor_machine
from runphi_async.errors import RunphiError
from runphi_async.host import cgroup
from runphi_async.install import examine as install
from runphi_async.install.engines import ENGINES as CHANGED
from runphi_async.install.root import Root
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.detect import Detection
    from runphi_async.config.schema import Config

#: Seconds that a program may take to say its version.
PATIENCE: Final = 10.0
#: Oldest kernel with all that is used: pidfd_getfd came with 5.6.
OLDEST_KERNEL: Final = (5, 6)
#: Free bytes below which a directory is called nearly full.
LITTLE: Final = 64 << 20
#: Where programs are looked for: an engine's PATH may be anything.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Bits of the effective capabilities. Source: capability.h(0p), linux/capability.h.
CAP_SYS_ADMIN: Final = 21
CAP_SYS_RESOURCE: Final = 24
#: Our own dependencies, by the names they are installed under.
PACKAGES: Final = ("anyio", "aiofiles", "google-re2", "msgspec", "pyserial-asyncio", "qemu.qmp")


class Engine(NamedTuple):
    """An engine that may call us: its program, its configuration, and a text that names us there."""

    name: str
    program: str
    config: str


#: Source: docs/reference/engines.md, section on choosing the runtime.
ENGINES: Final = (
    Engine("containerd", "containerd", "/etc/containerd/config.toml"),
    Engine("podman", "podman", "/etc/containers/containers.conf"),
    Engine("docker", "dockerd", "/etc/docker/daemon.json"),
    Engine("cri-o", "crio", "/etc/crio/crio.conf"),
)


class Place(NamedTuple):
    """A directory of ours; ``mode`` -1: it is not there. ``problem``: why it cannot be used, "" when it can."""

    what: str
    path: str
    mode: int
    free: int
    problem: str = ""


class Host(NamedTuple):
    """The machine, as read."""

    kernel: str
    machine: str
    uid: int
    capabilities: int
    v1: int
    v2: int
    controllers: frozenset[str]
    cpus: int
    memory: int


async def examine(detection: Detection) -> list[Finding]:
    """Look at everything; the order is that of the answer."""
    config, run_dir = detection.config, detection.run_dir
    host, places = await anyio.to_thread.run_sync(lambda: (read_host(), read_places(config, run_dir)))
    found = judge_host(host)
    found += await anyio.to_thread.run_sync(doctor_machine.examine)
    found += [Finding(Level.OK, "runphi", f"version {VERSION}, Python {platform.python_version()}, {packages()}")]
    found += [finding for place in places for finding in judge_place(place)]
    found += await anyio.to_thread.run_sync(install.examine, Root())
    found += judge_runc(config.real_runc(), await version(config.real_runc()), config.runc)
    for name in sorted(detect.BACKENDS):
        try:
            found += await (await detect.backend(name, detection)).examine()
        except RunphiError as exc:
            found.append(Finding(Level.WARNING, name, exc.msg, exc.hint or ""))
    for engine in ENGINES:
        program = shutil.which(engine.program, path=PATH)
        if program is not None:
            found.append(judge_engine(engine, await version(program), await anyio.to_thread.run_sync(_text, engine)))
    return found


# Section: what it means


def judge_host(host: Host) -> list[Finding]:
    """Judge kernel, privileges and cgroups."""
    found = [_kernel(host), _privileges(host)]
    layout = f"{host.v1} hierarchies of v1" if host.v1 else ""
    layout += " and " if host.v1 and host.v2 else ""
    layout += "v2" if host.v2 else ""
    missing = sorted({"cpu", "cpuset", "memory"} - host.controllers)
    if missing:
        mend = "boot with cgroup_enable=memory and without cgroup_disable="
        found.append(Finding(Level.WARNING, "host", f"cgroups: {layout or 'none'}; no {', '.join(missing)}", mend))
    else:
        found.append(Finding(Level.OK, "host", f"cgroups: {layout}"))
    found.append(Finding(Level.OK, "host", f"{host.cpus} CPUs, {host.memory >> 20} MiB of memory"))
    return found


def _kernel(host: Host) -> Finding:
    words = host.kernel.split("-")[0].split(".")[:2]
    version = tuple(digits.whole(number) or 0 for number in words)
    text = f"Linux {host.kernel} on {host.machine}"
    if version < OLDEST_KERNEL:
        least = ".".join(map(str, OLDEST_KERNEL))
        return Finding(Level.ERROR, "host", f"{text} is too old", f"{least} is the oldest kernel that has pidfd_getfd")
    return Finding(Level.OK, "host", text)


def _privileges(host: Host) -> Finding:
    if host.uid != 0:
        return Finding(Level.ERROR, "host", f"the supervisor runs as user {host.uid}", "run it as root")
    if not host.capabilities >> CAP_SYS_ADMIN & 1:
        return Finding(
            Level.ERROR, "host", "root without CAP_SYS_ADMIN: no namespaces, no cgroups", "run outside of a container"
        )
    if not host.capabilities >> CAP_SYS_RESOURCE & 1:
        text = "root without CAP_SYS_RESOURCE: runc cannot raise limits, pipes stay at 1 MiB"
        return Finding(Level.NOTE, "host", text)
    return Finding(Level.OK, "host", "root with all that is needed")


def judge_place(place: Place) -> list[Finding]:
    """Judge a directory of ours."""
    text = f"{place.what} {place.path}"
    if place.problem:
        return [Finding(Level.ERROR, "runphi", f"cannot use {text}: {place.problem}", "see who owns it, and its mount")]
    if place.mode == -1:
        return [Finding(Level.OK, "runphi", f"{text} is made when it is needed")]
    if place.mode & 0o022:
        mend = f"chmod go-w {place.path}"
        return [Finding(Level.ERROR, "runphi", f"{text} can be written by others (mode {place.mode:04o})", mend)]
    if place.free < LITTLE:
        return [Finding(Level.WARNING, "runphi", f"{text} is nearly full: {place.free >> 20} MiB left", "make room")]
    return [Finding(Level.OK, "runphi", f"{text}, {place.free >> 20} MiB free")]


def judge_runc(path: str | None, version: str, wanted: str) -> list[Finding]:
    """Judge the ordinary runtime, which runs all that asks for no partition."""
    if path is None:
        what = wanted or "runc"
        mend = "apt-get install runc, or set `runc` in the configuration"
        return [Finding(Level.WARNING, "runc", f"cannot find {what}: only partitions can be run", mend)]
    if not version:
        return [Finding(Level.WARNING, "runc", f"{path} does not say its version", f"run {path} --version")]
    return [Finding(Level.OK, "runc", f"{path}: {version}")]


def judge_engine(engine: Engine, version: str, config: str) -> Finding:
    """Judge whether an engine knows us by its configuration (it need not: ``ctr`` is told by an option)."""
    text = version or engine.program
    if "runphi" in config:
        return Finding(Level.OK, engine.name, f"{text}; {engine.config} names runphi")
    mend = f"runphi-configure --engine {engine.name}"
    return Finding(Level.NOTE, engine.name, f"{text}; {engine.config} does not name runphi", mend)


# Section: reading the machine


def read_host() -> Host:
    """Read what the kernel says of the machine."""
    used = cgroup.hierarchies()
    return Host(
        kernel=os.uname().release,
        machine=os.uname().machine,
        uid=os.geteuid(),
        capabilities=_capabilities(),
        v1=sum(1 for hierarchy in used if not hierarchy.v2),
        v2=sum(1 for hierarchy in used if hierarchy.v2),
        controllers=frozenset().union(*(hierarchy.controllers for hierarchy in used)),
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def _capabilities() -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def read_places(config: Config, run_dir: str) -> list[Place]:
    """Look at the directories we write to."""
    places = [_place("run directory", run_dir)]
    if config.log.enabled:
        places.append(_place("log directory", config.log.dir))
    return places


def _place(what: str, path: str) -> Place:
    try:
        mode = os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        return Place(what, path, -1, 0)
    except OSError as exc:
        return Place(what, path, 0, 0, (exc.strerror or str(exc)).lower())
    room = os.statvfs(path)
    problem = "" if os.access(path, os.W_OK | os.X_OK) else "it cannot be written to"
    return Place(what, path, mode, room.f_bavail * room.f_frsize, problem)


def packages() -> str:
    """Return our dependencies and their versions."""
    found = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def _text(engine: Engine) -> str:
    """Return an engine's configuration, and the file beside it that ``configure`` writes."""
    text = ""
    for path in dict.fromkeys((engine.config, CHANGED[engine.name].path)):
        with contextlib.suppress(OSError), open(path, errors="replace") as file:
            text += file.read(1 << 20)
    return text


async def version(program: str | None) -> str:
    """Return the first line of what a program says of its version; "" when it says nothing in time."""
    if program is None:
        return ""
    try:
        process = await asyncio.create_subprocess_exec(program, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    except OSError:
        return ""
    try:
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = out.decode("utf-8", "replace").splitlines()
    return lines[0].strip() if lines else ""


# Section: the answer


def as_text(found: Iterable[Finding]) -> str:
    """Return the findings for people: one line each, and how to mend what is not well."""
    lines = []
    for finding in found:
        lines.append(f"{finding.level:<8}{finding.area:<12}{finding.text}")
        if finding.mend:
            lines.append(f"{'':<20}to mend it: {finding.mend}")
    return "\n".join(lines) + "\n"


def as_json(found: Iterable[Finding]) -> bytes:
    """Return the findings for programs: a list of objects."""
    return msgspec.json.encode([finding._asdict() for finding in found]) + b"\n"
