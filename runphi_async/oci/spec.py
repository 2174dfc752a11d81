# SPDX-License-Identifier: Apache-2.0
"""A bundle's config.json as frozen Structs: what the runtime reads of it, and nothing else.

`create` and `run` decode a bundle with :func:`load`; `update` decodes its stdin with
:func:`resources_from_bytes`. Decoding is as lenient as the Go runtimes are: unknown fields are ignored and
``null`` stands for "not given", because engines write both. A wrong type is a `SpecError`
that names the place.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from runphi_async import regular
from runphi_async.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: name of the configuration file in a bundle
CONFIG_NAME = "config.json"
#: Largest config.json and largest document of resources, in bytes: engines' have some ten thousand.
DOCUMENT_MAX: Final = 16 << 20


class _Base(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Common options of every Struct here."""


class Root(_Base, frozen=True):
    """The container's root filesystem, prepared by the engine."""

    path: str = ""
    readonly: bool = False


class ConsoleSize(_Base, frozen=True):
    """Initial size of the terminal, in characters."""

    height: int = 0
    width: int = 0


class User(_Base, frozen=True):
    """Whom the process runs as."""

    uid: int = 0
    gid: int = 0
    additional_gids: list[int] = []
    umask: int | None = None
    username: str = ""


class Rlimit(_Base, frozen=True):
    """One resource limit of the process; `type` is a name such as ``RLIMIT_NOFILE``."""

    type: str = ""
    hard: int = 0
    soft: int = 0


class Process(_Base, frozen=True):
    """The process the engine wants to run."""

    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    args: list[str] = []
    env: list[str] = []
    cwd: str = "/"
    no_new_privileges: bool = False
    rlimits: list[Rlimit] = []
    oom_score_adj: int | None = None

    def getenv(self, name: str) -> str | None:
        """Return the value of an environment variable; the last assignment wins, as in a shell."""
        prefix = name + "="
        for entry in reversed(self.env):
            if entry.startswith(prefix):
                return entry[len(prefix) :]
        return None


class Mount(_Base, frozen=True):
    """One mount of the container."""

    destination: str = ""
    type: str = ""
    source: str = ""
    options: list[str] = []


class Hook(_Base, frozen=True):
    """A program to run at one point of the life cycle; `timeout` is in seconds."""

    path: str = ""
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class Hooks(_Base, frozen=True):
    """The hooks of each point of the life cycle, in the order to run them."""

    prestart: list[Hook] = []
    create_runtime: list[Hook] = []
    create_container: list[Hook] = []
    start_container: list[Hook] = []
    poststart: list[Hook] = []
    poststop: list[Hook] = []


class Namespace(_Base, frozen=True):
    """A namespace to make, or to join when `path` is given."""

    type: str = ""
    path: str = ""


class Device(_Base, frozen=True):
    """A device node wanted in the container."""

    type: str = ""
    path: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Memory(_Base, frozen=True):
    """Memory limits in bytes; -1 is "no limit". `swap` counts memory and swap together."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None


class Cpu(_Base, frozen=True):
    """Processor limits; `quota` and `period` in microseconds, `cpus` and `mems` like ``0-2,7``."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    cpus: str = ""
    mems: str = ""


class Pids(_Base, frozen=True):
    """Limit on the number of processes."""

    limit: int | None = None


class Resources(_Base, frozen=True):
    """The cgroup limits, also the document `update` reads."""

    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    unified: dict[str, str] = {}


class Linux(_Base, frozen=True):
    """The Linux part of the configuration."""

    namespaces: list[Namespace] = []
    cgroups_path: str = ""
    resources: Resources | None = None
    devices: list[Device] = []


class Spec(_Base, frozen=True):
    """The whole config.json."""

    oci_version: str = ""
    root: Root = Root()
    process: Process | None = None
    hostname: str = ""
    mounts: list[Mount] = []
    annotations: dict[str, str] = {}
    hooks: Hooks = Hooks()
    linux: Linux | None = None

    def rootfs(self, bundle: str) -> str:
        """Return the absolute host path of the root filesystem; a relative one starts at the bundle."""
        if not self.root.path:
            raise SpecError(
                f"{CONFIG_NAME}: $.root.path: expected a directory, got nothing",
                'name the root filesystem, usually "rootfs"',
            )
        path = os.path.normpath(os.path.join(bundle, self.root.path))
        if not os.path.isdir(path):
            raise SpecError(
                f"cannot use root filesystem {path!r}: not a directory",
                f"{CONFIG_NAME}: $.root.path is {self.root.path!r}; mount or unpack the image there",
            )
        return path


def load(bundle: str) -> Spec:
    """Read and decode the config.json of a bundle directory."""
    path = os.path.join(bundle, CONFIG_NAME)
    try:
        data = regular.read(path, DOCUMENT_MAX)
    except FileNotFoundError:
        raise SpecError(
            f"cannot read {path}: not found",
            "give the bundle directory with --bundle; `runphi spec` writes a sample",
        ) from None
    except OSError as exc:
        raise SpecError(f"cannot read {path}: {exc.strerror}") from exc
    return from_bytes(data)


def from_bytes(data: bytes) -> Spec:
    """Decode the text of a config.json.

    NUL is refused in every text, whatever reads it later: no program can be given one, and what is cut or split there
    could be forged. Further characters are refused where a text is used: a newline is good in ``process.args``, and in
    the annotations of engines.
    """
    return _decode(data, Spec, CONFIG_NAME)


def resources_from_bytes(data: bytes, name: str = "resources") -> Resources:
    """Decode a LinuxResources document; `name` is what errors call it."""
    return _decode(data, Resources, name)


#: What a text must have in it for a NUL, or for a number of more than 64 bits, to be in the document: a decoder refuses
#: the byte itself, and what has neither is not walked through.
_ODD: Final = re.compile(rb"\\u0000|[0-9]{19}")
_NUMBERS: Final = range(-(1 << 63), 1 << 64)


def refuse_odd(data: bytes, value: object, name: str) -> None:
    """Refuse NUL characters, and numbers that no kernel has a place for, in a decoded JSON document.

    :raises SpecError: naming the place.
    """
    found = _odd(value) if _ODD.search(data) else None
    if found is not None:
        place, problem = found
        raise SpecError(f"{name}: ${place}: {problem}", "remove it")


def _odd(value: object) -> tuple[str, str] | None:
    """Return where in a document something odd is, in the manner of msgspec's messages, and what."""
    if isinstance(value, str):
        return ("", "expected text, got a NUL character in it") if "\0" in value else None
    if isinstance(value, int):
        return None if value in _NUMBERS else ("", "expected a number, got one of more than 64 bits")
    for step, item in _items(value):
        if "\0" in step:
            return step.replace("\0", "\\u0000"), "expected text, got a NUL character in it"
        below = _odd(item)
        if below is not None:
            return step + below[0], below[1]
    return None


def _items(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, msgspec.Struct):
        for field, name in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
            yield f".{name}", getattr(value, field)
    elif isinstance(value, dict):
        yield from ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", item) for number, item in enumerate(value))


_T = TypeVar("_T", bound=_Base)


def _decode(data: bytes, kind: type[_T], name: str) -> _T:
    try:
        try:
            found = msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            # perhaps only a null where Go would put the zero value: look again without them
            found = msgspec.convert(_without_nulls(msgspec.json.decode(data)), kind)
        refuse_odd(data, found, name)
        return found
    except msgspec.ValidationError as exc:
        place, problem = locate(exc)
        raise SpecError(f"{name}: {place}: {problem}", _hint(problem)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        reason = str(exc)
        raise SpecError(
            f"{name}: cannot decode: {reason[:1].lower()}{reason[1:]}", "the file must hold one JSON object"
        ) from exc


def locate(exc: msgspec.ValidationError) -> tuple[str, str]:
    """Split a msgspec message into place and problem: ``("$.process.args[0]", "expected str, got int")``."""
    problem, _, place = str(exc).replace("`", "").partition(" - at ")
    return place or "$", problem[:1].lower() + problem[1:]


def _hint(problem: str) -> str:
    wanted = problem.removeprefix("expected ").partition(",")[0].removesuffix(" | null")
    example = {
        "str": 'a text in double quotes, such as "/bin/sh"',
        "int": "a whole number without quotes, such as 1024",
        "bool": "true or false without quotes",
        "array": 'a list in brackets, such as ["a", "b"]',
        "object": 'an object in braces, such as {"key": "value"}',
    }.get(wanted)
    return f"write {example} there" if example else "see the OCI runtime specification, config.md"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
