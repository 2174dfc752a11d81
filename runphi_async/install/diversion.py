# SPDX-License-Identifier: Apache-2.0
"""dpkg's diversions: with one, an upgrade of the package puts its file beside ours instead of over it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from runphi_async.errors import RunphiError
from runphi_async.install.detect import PATH

if TYPE_CHECKING:
    from runphi_async.install.root import Root


def here(root: Root) -> bool:
    """Whether the tree is looked after by dpkg."""
    return os.path.isdir(root("/var/lib/dpkg/info")) and shutil.which("dpkg-divert", path=PATH) is not None


def owner(root: Root, path: str) -> str:
    """Return the package that brought a file; "" when none did."""
    done = _run("dpkg-query", f"--admindir={root('/var/lib/dpkg')}", "--search", path)
    for line in done.stdout.splitlines():
        packages, _, name = line.partition(": ")
        if name == path and not packages.startswith("diversion "):
            return packages.split(",")[0].strip()
    return ""


def target(root: Root, path: str) -> str:
    """Return where a file is diverted to; "" when it is not."""
    # The database is read by the tool of that name only: its form is dpkg's own.
    done = _run("dpkg-divert", f"--admindir={root('/var/lib/dpkg')}", "--truename", path)
    name = done.stdout.strip()
    return "" if name == path else name


def add(root: Root, path: str, to: str) -> None:
    """Divert a file; nothing is moved."""
    _change(root, "--divert", to, "--add", path)


def drop(root: Root, path: str, to: str) -> None:
    """Divert a file no longer; nothing is moved."""
    _change(root, "--divert", to, "--remove", path)


def _change(root: Root, *words: str) -> None:
    admin = f"--admindir={root('/var/lib/dpkg')}"
    done = _run("dpkg-divert", admin, "--local", "--no-rename", "--quiet", *words)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RunphiError(f"cannot divert {words[-1]}: {said[-1]}", "run as root, and not while apt is at work")


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise RunphiError(f"cannot run {argv[0]}: {exc.strerror}", "apt-get install dpkg") from exc
