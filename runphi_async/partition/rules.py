# SPDX-License-Identifier: Apache-2.0
"""The rules that a container's console is watched by: the configuration's and its annotations'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from consoles.streams.rules import Rule, RuleError, compiled
from runphi_async.errors import SpecError
from runphi_async.events import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runphi_async.config.schema import Config


#: annotation of one rule: this and the rule's name
ANNOTATION: Final = "org.runphi.rule."


def rules_of(config: Config, annotations: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return a guest's rules: an annotation replaces the configured rule of its name, an empty one removes it."""
    found = {rule.name: rule.pattern.encode() for rule in config.console.rules}
    for key, value in annotations.items():
        if key.startswith(ANNOTATION):
            found[key.removeprefix(ANNOTATION)] = value.encode("utf-8", "surrogateescape")
    return tuple(Rule(name, pattern) for name, pattern in found.items() if pattern)


def check_annotation(key: str, value: str) -> None:
    """Refuse a rule that cannot be used, before a guest is made.

    :raises SpecError: why it cannot.
    """
    if value:
        try:
            compiled(Rule(key.removeprefix(ANNOTATION), value.encode("utf-8", "surrogateescape")), NAMES)
        except RuleError as exc:
            raise SpecError(f"cannot understand annotation {key}: {exc}") from None
