# SPDX-License-Identifier: Apache-2.0
"""What a root takes over from this machine: where packages come from, and whom to trust.

All of it is read from the machine, so a root can be made wherever apt and pip work, behind whatever mirror or proxy.
"""

from __future__ import annotations

import configparser
import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

APT: Final = Path("/etc/apt")
#: Signs the archives of all releases; of the package debian-archive-keyring, which every Debian has.
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: Where administrators put certificates; update-ca-certificates of the root takes them up.
CERTIFICATES: Final = Path("/usr/local/share/ca-certificates")
#: Variables handed on: what pip, git and Python are told of the network, and settings of this project.
PREFIXES: Final = ("PIP_", "RUNPHI_", "SSL_CERT_", "REQUESTS_CA_", "CURL_CA_", "GIT_SSL_")
PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")
#: Names a mirror of Debian where this machine does not.
MIRROR: Final = "RUNPHI_MIRROR"
#: Where pip looks for its configuration, as its manual has it.
PIP_FILES: Final = (Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), Path("/root/.config/pip/pip.conf"))
#: Settings of pip that may name files and directories.
PIP_PLACES: Final = ("find-links", "index-url", "extra-index-url", "constraint")


class CarryError(Exception):
    """Raised when this machine does not say where packages come from."""


class Source(NamedTuple):
    """One line of where packages come from."""

    uri: str
    suite: str


# Section: apt


def one_line_sources(text: str) -> Iterator[Source]:
    """Read a file of apt's older format; what brings only source code is left out."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words[:1] != ["deb"]:
            continue
        rest = words[1:]
        if rest and rest[0].startswith("["):  # options, which may hold blanks
            while rest and not rest.pop(0).endswith("]"):
                pass
        if len(rest) >= 2:
            yield Source(rest[0], rest[1])


def deb822_sources(text: str) -> Iterator[Source]:
    """Read a file of apt's newer format; what is disabled, or brings only source code, is left out."""
    for stanza in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            value = line
            if not line[:1].isspace():
                name, _, value = line.partition(":")
                name = name.lower()
            fields.setdefault(name, []).extend(value.split())
        if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
            yield from (Source(uri, suite) for uri in fields.get("uris", []) for suite in fields.get("suites", []))


def translate(found: Iterable[Source], own: str, wanted: str) -> list[str]:
    """Return the lines of another release's sources, from the same mirrors.

    :param own: codename of this machine's release.
    :param wanted: codename of the release asked for.
    """
    lines = []
    for source in found:
        name, dash, part = source.suite.partition("-")
        if name in (own, "stable", "oldstable") and part in ("", "updates", "security"):
            lines.append(f"deb {source.uri} {wanted}{dash}{part} main")
    return list(dict.fromkeys(lines))


def os_release(text: str) -> dict[str, str]:
    """Read what /etc/os-release says."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, value in pairs}


def apt_sources(wanted: str) -> list[str]:
    """Return where this machine gets the packages of a release from.

    :raises CarryError: it does not say.
    """
    if mirror := os.environ.get(MIRROR):
        return [f"deb {mirror} {wanted} main"]
    own = os_release(Path("/etc/os-release").read_text())
    found: list[Source] = []
    for path in [APT / "sources.list", *sorted((APT / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            found += (deb822_sources if path.suffix == ".sources" else one_line_sources)(path.read_text())
    lines = translate(found, own.get("VERSION_CODENAME", ""), wanted) if own.get("ID") == "debian" else []
    if not lines:
        raise CarryError(f"cannot find a mirror of Debian in {APT}; name one by {MIRROR}")
    return lines


def apt_settings() -> list[str]:
    """Return apt's settings in the root: this machine's proxies; that a root was kept for long is no error."""
    shown = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    network = [line for line in shown.splitlines() if line.startswith(("Acquire::http", "Acquire::https"))]
    return [
        *network,
        'Acquire::Check-Valid-Until "false";',
        'Acquire::Check-Date "false";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
    ]


# Section: pip


def named_paths(settings: Mapping[str, str]) -> list[Path]:
    """Return what pip's settings name by a path or a file URL."""
    found: list[Path] = []
    for name in PIP_PLACES:
        for word in settings.get(name, "").split():
            path = Path(unquote(urlsplit(word).path) if word.startswith("file:") else word)
            if path.is_absolute():
                # an index is the directory `simple` beside the files that it points to
                found.append(path.parent if path.name == "simple" else path)
    return list(dict.fromkeys(found))


def pip_paths(environment: Mapping[str, str]) -> list[Path]:
    """Return pip's configuration on this machine: its files, and the files and directories they name."""
    found: list[Path] = []
    for file in PIP_FILES:
        parser = configparser.RawConfigParser()
        if parser.read(file):
            found.append(file)
            found += [path for section in parser.sections() for path in named_paths(dict(parser.items(section)))]
    variables = {name.removeprefix("PIP_").lower().replace("_", "-"): value for name, value in environment.items()}
    found += named_paths(variables)
    return [path for path in dict.fromkeys(found) if path.exists()]


# Section: environment


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this machine that a root gets."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIXES) or name.lower() in PROXIES
    }  # fmt: skip
