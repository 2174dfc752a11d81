# SPDX-License-Identifier: Apache-2.0
"""What an annotation may say of a card, a disk or a shared directory; xl gets a text of ours made of it.

xl has a grammar of its own for each, and takes more than anybody may say here: a disk's ``script`` runs in dom0 as
root, a ``target`` takes all that is behind it, a field that comes twice counts the second time. So a text of somebody
else's is read strictly, each field against what it can hold, and written anew: what was checked is what xl reads.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A path of dom0: whatever takes a list apart at commas or blanks leaves it whole.
PATH: Final = re.compile(r"/[\w+.:@%=/-]{0,1000}", re.ASCII)
_WORD: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)
_NUMBER: Final = re.compile(r"(?:0x[0-9a-fA-F]{1,16}|[0-9]{1,19})[KMG]?")

Form = dict[str, re.Pattern[str]]

VIF: Final[Form] = {
    "bridge": _WORD,
    "mac": re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}"),
    "ip": re.compile(r"[0-9a-fA-F.:/]{1,64}"),
    "type": re.compile("vif|ioemu"),
    "model": _WORD,
    "rate": re.compile(r"[0-9]{1,9}[KMG]?[bB]/s(?:@[0-9]{1,9}[mu]?s)?"),
}
P9: Final[Form] = {"tag": _WORD, "path": PATH, "security_model": _WORD}
STATIC_SHM: Final[Form] = {
    "id": _WORD,
    "begin": _NUMBER,
    "end": _NUMBER,
    "offset": _NUMBER,
    "size": _NUMBER,
    "role": _WORD,
    "prot": _WORD,
    "cache_policy": _WORD,
}
DISK: Final[Form] = {
    "target": PATH,
    "format": re.compile("raw|qcow|qcow2|qed|vhd"),
    "vdev": re.compile(r"(?:xvd|sd|hd|d)[\w]{1,10}", re.ASCII),
    "access": re.compile("r|ro|w|rw"),
}
#: the order of a disk's fields without names
_POSITIONS: Final = tuple(DISK)


def parse(what: str, text: str, form: Form) -> dict[str, str]:
    """Read ``name=value,name=value``.

    :param what: for messages.
    :raises PlanError: a field that there is not, that comes twice, or holds what it cannot.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name not in form:
            raise PlanError(f"cannot use {what} {text!r}: {name} is not one of {', '.join(form)}")
        _put(what, text, form, found, (name, value))
    return found


def disk(text: str) -> dict[str, str]:
    """Read a disk: ``TARGET,FORMAT,VDEV,ACCESS``, the older ``phy:TARGET,VDEV,ACCESS``, or named fields.

    :raises PlanError: as `parse`.
    """
    words = [word.strip() for word in text.split(",")]
    if any(word.partition("=")[0] in DISK for word in words):
        found = parse("disk", text, DISK)
    else:
        kind, colon, target = words[0].partition(":")
        if colon and kind in ("phy", "file"):
            words = [target, "raw", *words[1:]]
        found = {}
        if len(words) > len(_POSITIONS):
            raise PlanError(f"cannot use disk {text!r}: it says more than {', '.join(_POSITIONS)}")
        for name, word in zip(_POSITIONS, words, strict=False):
            if word:
                _put("disk", text, DISK, found, (name, word))
    for name in ("target", "vdev"):
        if name not in found:
            raise PlanError(f"cannot use disk {text!r}: it says no {name}=")
    return {"format": "raw", "access": "rw", **found}


def _put(what: str, text: str, form: Form, found: dict[str, str], field: tuple[str, str]) -> None:
    name, value = field
    if name in found:
        raise PlanError(f"cannot use {what} {text!r}: it says {name} twice")
    if not form[name].fullmatch(value):
        raise PlanError(f"cannot use {what} {text!r}: {name} cannot be {value!r}")
    if form[name] is PATH and os.path.normpath(value) != value:
        raise PlanError(f"cannot use {what} {text!r}: {value} is not the plain name of a path")
    found[name] = value


def written(fields: Mapping[str, str]) -> str:
    """Return fields as xl has them."""
    return ",".join(f"{name}={value}" for name, value in fields.items())


def disk_written(fields: Mapping[str, str]) -> str:
    """Return a disk as xl has it, by position: no later field can be taken for the target."""
    return ",".join(fields[name] for name in _POSITIONS)
