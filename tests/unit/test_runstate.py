# SPDX-License-Identifier: Apache-2.0
"""What is decided about a VMM's run state, a kernel's deadline and a second try: tables, without any QEMU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.qemu import again, runstate, virtiofs, words
from backends.qemu.heard import Heard
from backends.qemu.runstate import Clock, Standing
from backends.qemu.settings import InitSeconds
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from pathlib import Path

#: all of QEMU 7.2's and 10's
STATES = {
    "debug": Standing.PAUSED,
    "inmigrate": Standing.BEFORE,
    "internal-error": Standing.FAILED,
    "io-error": Standing.FAILED,
    "paused": Standing.PAUSED,
    "postmigrate": Standing.PAUSED,
    "prelaunch": Standing.BEFORE,
    "finish-migrate": Standing.PAUSED,
    "restore-vm": Standing.PAUSED,
    "running": Standing.RUNNING,
    "save-vm": Standing.PAUSED,
    "shutdown": Standing.ENDING,
    "suspended": Standing.RUNNING,
    "watchdog": Standing.FAILED,
    "guest-panicked": Standing.ENDING,
    "colo": Standing.PAUSED,
}
CROWD = b"KVM internal error. Suberror: 1\nextra data[0]: 0x1\nemulation failure\n" + b"".join(
    line + b"\n"
    for line in (
        b"RAX=0000000000000000 RBX=0000000000000000",
        b"R8 =0000000000000000 R9 =0000000000000000",
        b"ES =0000 0000000000000000 ffffffff 00c00000",
        b"GDT=     fffffe0000001000 0000007f",
        b"CR0=80050033 CR2=0000000000000000",
        b"EFER=0000000000000d01",
        b"Code=00 00 f0 48 0f c7 0f",
    )
)


@pytest.mark.parametrize(("status", "expected"), STATES.items())
def test_every_state_has_a_meaning(status: str, expected: Standing) -> None:
    assert runstate.standing(status) is expected
    assert runstate.status_of({"status": status, "running": status == "running"}) == status


@pytest.mark.parametrize("answer", [None, [], "running", {}, {"status": 3}, {"status": "of a later QEMU"}])
def test_what_nobody_understands_changes_nothing(answer: object) -> None:
    found = runstate.standing(runstate.status_of(answer))
    assert found is Standing.UNKNOWN
    for wish in (None, *Standing):
        assert not runstate.is_news(wish, found)


@pytest.mark.parametrize("wish", [None, *Standing])
@pytest.mark.parametrize("found", Standing)
def test_only_a_pause_or_a_run_that_was_not_asked_for_is_news(wish: Standing | None, found: Standing) -> None:
    expected = found in (Standing.RUNNING, Standing.PAUSED) and wish is not found
    assert runstate.is_news(wish, found) is expected


def test_a_failure_says_what_qemu_said_and_not_its_registers() -> None:
    assert runstate.failure("internal-error", CROWD) == (
        "the VMM stopped: internal error: KVM internal error. Suberror: 1; emulation failure"
    )
    assert runstate.failure("io-error", b"") == "the VMM stopped: input or output of a device failed"


# Section: the deadline


def test_the_clock_stands_while_the_guest_does() -> None:
    clock = Clock().go(100.0)
    assert clock.at(103.0) == 3.0
    assert clock.left(103.0, 5.0) == 2.0
    clock = clock.stand(104.0)
    assert (clock.at(200.0), clock.left(200.0, 5.0)) == (4.0, None)
    clock = clock.go(200.0)
    assert (clock.at(200.5), clock.left(200.5, 5.0), clock.left(300.0, 5.0)) == (4.5, 0.5, 0.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1000)), max_size=20))
def test_the_clock_never_runs_backwards_nor_twice(steps: list[tuple[bool, float]]) -> None:
    clock, now, ran, runs = Clock(), 0.0, 0.0, False
    for runs_next, seconds in steps:
        clock = clock.go(now) if runs_next else clock.stand(now)
        runs = runs_next
        now += seconds
        ran += seconds if runs else 0.0
        assert clock.at(now) == pytest.approx(ran)
        assert msgspec.json.decode(msgspec.json.encode(clock), type=Clock) == clock


def test_each_accelerator_has_its_deadline() -> None:
    seconds = InitSeconds(kvm=3.0, tcg=90.5)
    assert (runstate.deadline("kvm", seconds), runstate.deadline("tcg", seconds)) == (3.0, 90.5)
    assert runstate.late(90.5, "tcg") == "the guest's kernel did not reach init within 90.5 s on TCG"
    assert runstate.late(30.0, "kvm") == "the guest's kernel did not reach init within 30 s on KVM"


# Section: the second try


@pytest.mark.parametrize(
    ("status", "events", "expected"),
    [
        (134, [], True),
        (139, [], True),
        (1, [], True),
        (0, [("SHUTDOWN", {"reason": "guest-reset"})], True),
        (None, [("SHUTDOWN", {"reason": "guest-reset"})], True),
        (None, [("GUEST_PANICKED", {})], True),
        (0, [("SHUTDOWN", {"reason": "guest-shutdown"})], True),
        # somebody ended it
        (137, [], False),
        (143, [], False),
        (130, [], False),
        (129, [], False),
        (137, [("SHUTDOWN", {"reason": "guest-reset"})], False),
        (0, [("SHUTDOWN", {"reason": "host-signal"})], False),
        (0, [("SHUTDOWN", {"reason": "host-qmp-quit"})], False),
        # it lives, or nobody knows
        (None, [], False),
        (None, [("STOP", {})], False),
    ],
)
def test_whose_fault_an_end_before_init_is(
    status: int | None, events: list[tuple[str, dict[str, Any]]], expected: bool
) -> None:
    assert runstate.is_kvms(status, events) is expected


def test_the_order_in_the_record_survives_a_crash_at_every_step(tmp_path: Path) -> None:
    directory = str(tmp_path)
    (tmp_path / "exit").touch()
    (tmp_path / stub.VMM_STATUS).write_text("134\n")
    assert again.load(directory) is None
    decided = again.Again("it hung", True)
    again.save(directory, decided)
    assert again.load(directory) == decided
    assert not again.is_handed_over(directory)
    # a predecessor had come to the first step of it
    (tmp_path / again.FIRST_LOG).write_text("said\n")
    again.hand_over(directory)
    assert again.is_handed_over(directory)
    assert stub.read_status(directory) is None
    assert (tmp_path / "exit").read_text() == "again\n"
    again.forget(directory)
    again.forget(directory)
    assert again.load(directory) is None


def test_a_damaged_decision_is_none(tmp_path: Path) -> None:
    (tmp_path / again.FILE).write_text("{")
    assert again.load(str(tmp_path)) is None


def test_what_stands_in_the_decisions_place_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / again.FILE)
    assert again.load(str(tmp_path)) is None
    (tmp_path / again.FILE).unlink()
    (tmp_path / "elsewhere").write_bytes(b'{"reason":"it hung"}')
    (tmp_path / again.FILE).symlink_to("elsewhere")
    assert again.load(str(tmp_path)) is None


def test_a_file_servers_log_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"the host's")
    (tmp_path / virtiofs.LOG).symlink_to("elsewhere")
    for _ in range(2):
        with virtiofs.fresh(str(tmp_path / virtiofs.LOG)) as log:
            log.write(b"hello")
        assert (tmp_path / virtiofs.LOG).read_bytes() == b"hello"
        (tmp_path / virtiofs.LOG).unlink()
        os.mkfifo(tmp_path / virtiofs.LOG)
    assert (tmp_path / "elsewhere").read_bytes() == b"the host's"


# Section: what is heard, and last words


@pytest.mark.parametrize("line", [b"init 1", b"ready", b"error no such file", b"written 3", b"exit 0", b"echo 4"])
def test_every_word_of_init_means_that_it_is_there(line: bytes) -> None:
    heard = Heard()
    heard.word(line)
    assert heard.reached
    assert heard.answers is line.startswith(b"init")


@pytest.mark.parametrize("line", [b"", b"\xff\xfe", b"initial", b"in", b"Init 1"])
def test_noise_means_nothing(line: bytes) -> None:
    heard = Heard()
    assert heard.word(line) == ""
    assert not heard.reached


def test_first_words_stand_and_later_ones_are_no_news() -> None:
    heard = Heard()
    assert [heard.word(line) for line in (b"exit 3", b"exit 4", b"error one", b"error two")] == [
        "exit",
        "",
        "error",
        "",
    ]
    assert (heard.exit, heard.error) == (3, "one")


def test_events_are_kept_in_order_and_noise_is_not() -> None:
    heard = Heard()
    lines = (
        b'{"QMP": {}}',
        b'{"event": "RESUME"}',
        b"{",
        b'{"return": {}}',
        b'{"event": "STOP", "data": {"a": 1}}',
        b"[]",
    )
    assert [heard.event(line) for line in lines] == ["", "RESUME", "", "", "STOP", ""]
    assert heard.events == [("RESUME", {}), ("STOP", {"a": 1})]
    assert heard.started


@given(st.binary(max_size=4000))
def test_last_words_are_short_and_hold_nothing_a_terminal_acts_on(data: bytes) -> None:
    for line in words.last(data):
        assert 0 < len(line) <= words.LINE_MAX
        assert line.isprintable()
    assert len(words.last(data)) <= words.LINES
    assert words.of_vmm(data).isprintable()


def test_last_words_of_a_kernel() -> None:
    log = (
        b"\x1bc\x1b[2J[    0.0] hello\r\n\n" + b"[    1.0] Kernel panic - not syncing: VFS\n" + b"[    1.1] trace\n" * 9
    )
    assert words.last(log, 100)[0] == "[    0.0] hello"
    lines = words.of_panic(log)
    assert lines[0] == "[    1.0] Kernel panic - not syncing: VFS"
    assert len(lines) == words.LINES + 1
    assert words.of_kernel(("a", "b")) == "; its last lines: a | b"
    assert words.of_kernel(()) == ""
