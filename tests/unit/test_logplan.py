# SPDX-License-Identifier: Apache-2.0
"""The annotation ``org.runphi.log``: what it may say, and what it can never reach."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async.config.schema import Log
from runphi_async.config.section import Size
from runphi_async.errors import SpecError
from runphi_async.partition import logplan
from runphi_async.partition.logplan import LogOrder, LogPlan, parse, plan
from runphi_async.record.store import Record
from runphi_async.terminals.consolelogs import plans

MIB = 1 << 20
LOG = Log(dir="/logs", path_dirs=("/var/log/pods", "/srv/x/"))


@pytest.mark.parametrize(
    ("text", "orders"),
    [
        ("none", ()),
        ("cri", (LogOrder("cri"),)),
        (" raw , timed ", (LogOrder("raw"), LogOrder("timed"))),
        ("cri:max-size=10M:max-files=3", (LogOrder("cri", 10 * MIB, 3),)),
        ("json-file:max-files=1", (LogOrder("json-file", None, 1),)),
        ("cri:path=/var/log/pods/a/0.log", (LogOrder("cri", None, None, "/var/log/pods/a/0.log"),)),
        ("raw,cri:path=/a b", (LogOrder("raw"), LogOrder("cri", None, None, "/a b"))),
    ],
)
def test_what_can_be_said(text: str, orders: tuple[LogOrder, ...]) -> None:
    assert parse(text) == orders


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no kind of log: raw, cri, json-file, timed or none"),
        ("json", "did you mean json-file?"),
        ("cri,", "'' is no kind of log"),
        ("cri,cri", "'cri' stands there twice"),
        ("cri,none", "'none' stands alone"),
        ("cri:size=1M", "'size' is no option of a log: max-size, max-files, path; did you mean max-size?"),
        ("cri:max-size", "'max-size' wants one value, such as max-size=10M"),
        ("cri:max-size=", "wants one value"),
        ("cri:max-size=1M:max-size=2M", "wants one value"),
        ("cri:max-size=big", "'big' is not a size"),
        ("cri:max-size=5", "less than 1 KiB"),
        ("cri:max-files=0", "max-files=0 is not between 1 and 100"),
        ("cri:max-files=101", "not between 1 and 100"),
        ("cri:max-files=-1", "negative"),
        ("cri:path=x.log", "not an absolute path"),
        ("cri:path=/var/log/../../etc/x", "not an absolute path without '.', '..'"),
        ("cri:path=/var/log/x/", "trailing slashes"),
        ("cri:path=//var", "not an absolute path") if os.path.normpath("//var") != "//var" else ("x", "no kind"),
        ("cri:path=/a\0b", "not an absolute path"),
        ("raw:path=/var/log/pods/x", "raw has no path"),
    ],
)
def test_what_cannot(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert message in str(caught.value)


@given(st.text(alphabet="rawcijsonfletmd-:,=/.0123456789KM x\0", max_size=60))
def test_any_text_is_orders_or_a_clear_error(text: str) -> None:
    try:
        orders = parse(text)
    except ValueError as exc:
        assert len(str(exc)) > 10  # noqa: PT017
    else:
        for order in orders:
            assert order.path is None or os.path.normpath(order.path) == order.path


def test_the_configuration_decides_without_an_annotation() -> None:
    assert plan(Log(dir="/logs"), "c1", None) == (LogPlan("raw", "/logs/c1", "console.log", 64 * MIB, 2),)
    several = Log(dir="/logs", sinks=("raw", "cri", "json-file", "timed"), max_bytes=Size(MIB), max_files=7)
    assert [one.path for one in plan(several, "c1", None)] == [
        f"/logs/c1/console.{end}" for end in ("log", "cri.log", "json.log", "timed")
    ]
    assert {(one.max_bytes, one.max_files) for one in plan(several, "c1", None)} == {(MIB, 7)}
    assert plan(Log(enabled=False), "c1", None) == ()


def test_the_annotation_decides_where_it_speaks() -> None:
    assert plan(LOG, "c1", ()) == ()
    cri, timed = plan(LOG, "c1", parse("cri:max-size=2M,timed:max-files=9"))
    assert (cri.max_bytes, cri.max_files) == (2 * MIB, 2)
    assert (timed.max_bytes, timed.max_files) == (64 * MIB, 9)
    with pytest.raises(SpecError, match="logging is off"):
        plan(Log(enabled=False), "c1", parse("cri"))
    assert plan(Log(enabled=False), "c1", parse("none")) == ()


def test_it_cannot_fill_the_disk() -> None:
    with pytest.raises(SpecError, match=r"raw may take 1000 GiB, log.annotation_max_bytes allows 1 GiB"):
        plan(LOG, "c1", parse("raw:max-size=10G:max-files=100"))
    with pytest.raises(SpecError, match="any size"):
        plan(Log(dir="/logs", max_bytes=Size(0)), "c1", parse("raw:max-files=3"))
    # what it does not set is the administrator's to answer for
    assert plan(Log(dir="/logs", max_bytes=Size(0)), "c1", parse("raw"))[0].max_bytes == 0


@pytest.mark.parametrize(
    ("path", "beneath"),
    [
        ("/var/log/pods/x.log", "/var/log/pods"),
        ("/var/log/pods/a/b/x.log", "/var/log/pods"),
        ("/srv/x/y", "/srv/x"),
        ("/var/log/podsx/x.log", None),
        ("/var/log/pods", None),
        ("/etc/passwd", None),
    ],
)
def test_a_path_lies_below_an_allowed_directory(path: str, beneath: str | None) -> None:
    orders = parse(f"cri:path={path}")
    if beneath is None:
        with pytest.raises(SpecError, match=r"log.path_dirs allows /var/log/pods, /srv/x/"):
            plan(LOG, "c1", orders)
    else:
        (one,) = plan(LOG, "c1", orders)
        assert (one.path, one.beneath) == (path, beneath)
    with pytest.raises(SpecError, match="allows nowhere"):
        plan(Log(), "c1", orders)


def test_two_containers_do_not_share_a_file() -> None:
    orders = parse("cri:path=/var/log/pods/x.log")
    assert logplan.clash(plan(LOG, "c1", orders), plan(LOG, "c2", orders)) == "/var/log/pods/x.log"
    assert logplan.clash(plan(LOG, "c1", parse("cri")), plan(LOG, "c2", parse("cri"))) is None


def test_a_record_of_an_earlier_version_has_its_raw_log() -> None:
    old: dict[str, object] = dict.fromkeys(("id", "name", "root", "bundle", "rootfs", "backend", "boot_id"), "x")
    old |= {"status": "running", "created": 0.0}
    record = msgspec.convert({**old, "log_dir": "/logs/x"}, Record)
    assert plans(record) == (LogPlan("raw", "/logs/x", "console.log", 64 * MIB, 2),)
    assert plans(msgspec.convert(old, Record)) == ()
    new = msgspec.json.decode(
        msgspec.json.encode(msgspec.structs.replace(record, logs=plan(LOG, "x", parse("cri,timed")))), type=Record
    )
    assert [one.kind for one in plans(new)] == ["cri", "timed"]
