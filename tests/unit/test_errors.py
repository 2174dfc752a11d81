# SPDX-License-Identifier: Apache-2.0
"""The error tree: every exception of the packages is in its picture, below the parent that the picture says."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Final

import pytest

import backends
import consoles
import runphi_async
from consoles.errors import SourceError
from consoles.sources.settings import SettingError
from consoles.streams.rules import RuleError
from runphi_async import errors
from runphi_async.config.loading import from_table
from runphi_async.errors import ConfigError, RunphiError

#: what starts something when it is imported, and what only stands in for others
LEFT_OUT: Final = re.compile(r"\.__main__$|^runphi_async\.testing\b")
OUTSIDE: Final = {"ClientGone", "PassThrough", "HelpAsked", "Lost"}


def exceptions() -> dict[str, type[BaseException]]:
    """Import all modules; return their exceptions by name."""
    for package in (runphi_async, consoles, backends):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not LEFT_OUT.search(module.name):
                importlib.import_module(module.name)
    found: dict[str, type[BaseException]] = {}
    waiting: list[type[BaseException]] = [BaseException]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__.partition(".")[0] in ("runphi_async", "consoles", "backends") and not LEFT_OUT.search(
            one.__module__
        ):
            assert found.setdefault(one.__name__, one) is one, f"two exceptions are called {one.__name__}"
    return found


def drawn() -> dict[str, str]:
    """Return the parent of each error in the picture."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)(?:[├└]── )?(\w+)", line)
        if match is None or not re.match(r"    [│├└R]", line):
            continue
        depth = len(match[1]) // 4 + ("──" in line)
        above[depth:] = [match[2]]
        if depth:
            parents[match[2]] = above[depth - 1]
    return parents


def test_every_error_is_in_the_picture_below_its_parent() -> None:
    found = exceptions()
    parents = {
        name: next(base.__name__ for base in one.__mro__[1:] if issubclass(base, RunphiError))
        for name, one in found.items()
        if issubclass(one, RunphiError) and one is not RunphiError
    }
    assert parents == drawn()


def test_what_is_no_error_is_named() -> None:
    outside = {name for name, one in exceptions().items() if not issubclass(one, RunphiError)}
    assert outside == OUTSIDE
    assert all(f"``{name}``" in (errors.__doc__ or "") for name in outside)


@pytest.mark.parametrize("error", [SourceError("no port"), SettingError(7, "no port"), RuleError("no port")])
def test_an_error_of_consoles_can_be_printed_by_any_verb(error: RunphiError) -> None:
    assert (error.msg, error.hint, str(error)) == ("no port", None, "no port")


def test_a_rule_in_a_configuration_is_still_found_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"console.*rule name 'exit': the runtime has an event of that name"):
        from_table({"console": {"rules": [{"name": "exit", "pattern": "x"}]}})
