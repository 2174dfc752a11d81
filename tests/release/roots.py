# SPDX-License-Identifier: Apache-2.0
"""The roots: what is made once and kept, as layers that lie on each other.

``base`` is what mmdebstrap makes, a Debian with hardly anything in it: bin/quickstart and bin/test have to bring what
they need. ``packages`` is what they install, ``guest`` the kernels of Linux guests: with these, a second run downloads
nothing. A layer is named after what it was made of, appears whole or not at all, and goes when newer ones have come.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.release import carried
from tests.release.room import CHECKOUT, Room, copy_checkout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: What people say, and Debian's own name for it.
RELEASES: Final = {"debian12": "bookworm", "debian13": "trixie"}
STORE: Final = Path(os.environ.get("RUNPHI_ROOTS", "/var/cache/runphi/roots"))
#: Layers of one kind that are kept: this checkout's, and that of another branch.
KEPT: Final = 2
#: MiB that the packages and wheels of one release may take before all of them are dropped.
DOWNLOADS_MIB: Final = 4096
#: How directories begin that are no layers, or not yet.
ASIDE: Final = ".making-"
#: Seconds to make a layer, downloads of half a gigabyte by a slow line among them.
MAKE_SECONDS: Final = 3600.0
#: apt's lists are kept: nothing is asked of the network twice.
BOOTSTRAP: Final = (
    "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", "--skip=cleanup/apt/lists",
    "--dpkgopt=force-unsafe-io",
)  # fmt: skip
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHIVES: Final = "/var/cache/apt/archives"
#: Where a layer's making sees the checkout.
SOURCE: Final = "/mnt/checkout"


class RootError(Exception):
    """Raised when a root cannot be made."""


class Kind(NamedTuple):
    """What one layer is made of, and how."""

    name: str
    #: files of the checkout that decide what comes out
    inputs: tuple[str, ...]
    script: str


PACKAGES: Final = Kind(
    "packages",
    ("bin/lib.sh", "pyproject.toml"),
    '. bin/lib.sh && apt_need "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}" && need_venv && need_venv dev',
)
GUEST: Final = Kind(
    "guest",
    ("bin/prepare-guest", "backends/guest/initrd.py", "backends/guest/init"),
    "bin/prepare-guest && bin/prepare-guest --cells",
)
#: What a release's suites run on.
WARM: Final = (PACKAGES, GUEST)


def say(text: str) -> None:
    print(f"[release] {text}", flush=True)


def digest(before: str, inputs: Sequence[str], script: str) -> str:
    """Return the name of what is made of these files on the layer before."""
    found = hashlib.sha256(f"{before}\n{script}\n".encode())
    for name in inputs:
        path = CHECKOUT / name
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]


class Roots:
    """The layers of one release; what is in use is locked until this is closed.

    :param release: ``debian12`` or ``debian13``.
    """

    def __init__(self, release: str) -> None:
        self.release = release
        self.codename = RELEASES[release]
        self.store = STORE / release
        self.store.mkdir(parents=True, exist_ok=True)
        self._held = contextlib.ExitStack()

    def close(self) -> None:
        """Let go of the layers."""
        self._held.close()

    # Section: layers

    def base(self) -> list[Path]:
        """Return the layers of a Debian in which nothing was installed yet."""
        sources, settings = carried.apt_sources(self.codename), carried.apt_settings()
        name = "base-" + digest("\n".join([*sources, *settings]), (), " ".join(BOOTSTRAP))
        return [self._layer(name, lambda made: self._bootstrap(made, sources, settings))]

    def warm(self, kinds: Sequence[Kind] = WARM) -> list[Path]:
        """Return the layers with all that the suites need, the uppermost first."""
        layers = self.base()
        for kind in kinds:
            name = f"{kind.name}-{digest(layers[0].name, kind.inputs, kind.script)}"
            below = list(layers)
            layers.insert(0, self._layer(name, partial(self._install, kind=kind, below=below)))
        return layers

    def derived(self, name: str, made_of: str, make: Callable[[Path], None]) -> Path:
        """Return a directory that is kept as layers are.

        :param made_of: all that decides what comes out.
        """
        return self._layer(f"{name}-{digest(made_of, (), '')}", make)

    def _layer(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.store / name
        lock = self._held.enter_context(open(self.store / f".{name}.lock", "w"))  # noqa: SIM115 - held
        if not path.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)  # who waits here finds it made
            if not path.is_dir():
                self._make(path, make)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(path)
        self._prune(name.partition("-")[0])
        return path

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        say(f"making {path.name} of {self.release}, once: this takes some minutes")
        with self._aside() as work:
            made = work / "layer"
            made.mkdir(mode=0o755)
            make(made)
            made.rename(path)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Path]:
        """Give a directory where nothing counts as made: to make something in it, or to take something apart.

        It goes at the end; those of runs that were killed go when the next one comes.
        """
        with open(self.store / f"{ASIDE}lock", "w") as looking:
            fcntl.flock(looking, fcntl.LOCK_EX)
            for left in (path for path in self.store.glob(f"{ASIDE}*") if path.is_dir()):
                with contextlib.suppress(FileNotFoundError), _held(left) as free:  # or its maker takes it away just now
                    if free:
                        shutil.rmtree(left)
            work = Path(tempfile.mkdtemp(prefix=ASIDE, dir=self.store))
            fd = os.open(work, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            try:
                shutil.rmtree(work)
            finally:
                os.close(fd)

    def _bootstrap(self, made: Path, sources: list[str], settings: list[str]) -> None:
        """Make a Debian of what is essential, with this machine's certificates to be."""
        tool = ["/bin/bash", "-c", ". bin/lib.sh && apt_need mmdebstrap debian-archive-keyring"]
        if subprocess.run(tool, cwd=CHECKOUT, check=False).returncode:
            raise RootError("cannot make a root without mmdebstrap")
        options = [word for line in settings for word in ("--aptopt", line.removesuffix(";"))]
        argv = [*BOOTSTRAP, f"--keyring={carried.KEYRING}", *options, self.codename, str(made), "-"]
        done = subprocess.run(
            argv,
            input="\n".join([*sources, ""]),
            text=True,
            check=False,
            timeout=MAKE_SECONDS,
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RootError(f"cannot make a root of {self.release}: mmdebstrap ended with {done.returncode}")
        if carried.CERTIFICATES.is_dir():
            target = made / str(carried.CERTIFICATES).lstrip("/")
            shutil.copytree(carried.CERTIFICATES, target, dirs_exist_ok=True)

    def _install(self, made: Path, kind: Kind, below: list[Path]) -> None:
        """Run a layer's script on the layers below."""
        with Room(below, self.release, STORE / "rooms", keep=made) as room, Downloads(self.store, room):
            source = room.scratch / "checkout"
            copy_checkout(source)
            room.bind(source, SOURCE, readonly=False)
            status = room.run(["/bin/bash", "-c", kind.script], environment(room), MAKE_SECONDS, cwd=SOURCE)
        if status:
            raise RootError(f"cannot make {kind.name} of {self.release}: status {status}")

    def _prune(self, name: str) -> None:
        """Remove the oldest layers of a kind that nobody uses."""
        found = [path for path in self.store.glob(f"{name}-*") if path.is_dir()]
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            lock = self.store / f".{path.name}.lock"
            lock.touch()
            with _held(lock) as free:
                if free:
                    with self._aside() as aside:
                        path.rename(aside / path.name)  # half removed it would count as made
                    lock.unlink()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or directory, if nobody else does; say whether."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)


def environment(room: Room) -> dict[str, str]:
    """Return the variables of a command in a room, and show the room what they and pip's configuration name."""
    found = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb")}
    found |= carried.variables(os.environ)
    for path in carried.pip_paths(found):
        room.bind(path, str(path))
    return found


class Downloads:
    """The packages and wheels that were downloaded before, put into a room; what is new there is kept.

    Packages are hard links, so rooms that run beside each other do not wait for one another's apt.
    """

    def __init__(self, store: Path, room: Room) -> None:
        self._debs = store / "archives"
        self._wheels = store / "wheels"
        self._room = room

    def __enter__(self) -> None:
        for path in (self._debs, self._wheels):
            if sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) > DOWNLOADS_MIB << 20:
                shutil.rmtree(path)
            path.mkdir(exist_ok=True)
        for deb in self._debs.glob("*.deb"):
            os.link(deb, self._room.on_disk(ARCHIVES) / deb.name)
        self._room.bind(self._wheels, "/root/.cache/pip", readonly=False)

    def __exit__(self, *exc: object) -> None:
        for deb in self._room.on_disk(ARCHIVES).glob("*.deb"):
            with contextlib.suppress(FileExistsError):
                os.link(deb, self._debs / deb.name)
