# SPDX-License-Identifier: Apache-2.0
"""Whatever text comes: the xl.cfg read by another reader holds the keys that were meant, and each device its fields."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.xen import fields, xlcfg
from runphi_async.errors import PlanError

TEXTS = st.text(max_size=40) | st.text(st.sampled_from("ab\"'\\\n,=; /[]#\0"), max_size=20)


def read(data: bytes) -> dict[str, Any]:
    """Read as Python, whose strings and lists xl.cfg took over; xl's own strings end earlier or never later."""
    found: dict[str, Any] = {}
    for line in data.decode().split("\n")[:-1]:
        key, equals, value = line.partition(" = ")
        assert equals
        assert key not in found
        found[key] = ast.literal_eval(value)
    return found


@given(extra=TEXTS, kernel=TEXTS, disks=st.lists(TEXTS, max_size=3))
@example(extra='x"\nkernel = "/etc/shadow', kernel="/k", disks=[])
@example(extra="x", kernel="/k", disks=['a", "b'])
def test_a_text_stays_in_its_quotes(extra: str, kernel: str, disks: list[str]) -> None:
    entries: dict[str, xlcfg.Value] = {"extra": extra, "kernel": kernel, "disk": tuple(disks), "vcpus": 2}
    try:
        written = xlcfg.render(entries)
    except PlanError:
        return
    assert read(written) == {"extra": extra, "kernel": kernel, "disk": disks, "vcpus": 2}


@given(st.lists(TEXTS, max_size=3))
def test_numbers_without_quotes_are_numbers(irqs: list[str]) -> None:
    try:
        written = xlcfg.render({"irqs": tuple(irqs)})
    except PlanError:
        return
    assert re.fullmatch(rb"irqs = (\[\]|\[ [0-9]+(, [0-9]+)* \])\n", written)


SPECIFICATIONS = st.lists(
    st.builds(
        lambda name, value: f"{name}={value}",
        st.sampled_from(["target", "path", "tag", "bridge", "script", "format", "vdev", "access", "backend"]) | TEXTS,
        st.sampled_from(["/srv/a", "/srv/../etc", "raw", "xvda", "xenbr0", "r", "a"]) | TEXTS,
    )
    | TEXTS,
    max_size=5,
).map(",".join)


@pytest.mark.parametrize("form", [fields.VIF, fields.P9, fields.STATIC_SHM], ids=["vif", "p9", "shm"])
@given(text=SPECIFICATIONS)
def test_what_is_written_is_what_was_checked(form: fields.Form, text: str) -> None:
    try:
        found = fields.parse("thing", text, form)
    except PlanError:
        return
    # as xl reads: split at commas, the last of a name counts
    assert dict(part.split("=", 1) for part in fields.written(found).split(",") if part) == found
    assert set(found) <= set(form)


@given(SPECIFICATIONS | TEXTS)
@example("/srv/a,raw,xvda,rw,script=/rootfs/evil")
@example("vdev=xvda,target=/srv/a,script=/rootfs/evil")
def test_a_disk_has_four_fields(text: str) -> None:
    try:
        found = fields.disk(text)
    except PlanError:
        return
    words = fields.disk_written(found).split(",")
    assert words == [found["target"], found["format"], found["vdev"], found["access"]]
    assert words[0].startswith("/")
    assert "/../" not in words[0] + "/"
