# SPDX-License-Identifier: Apache-2.0
"""Logs of a guest under a real containerd: kinds asked for by annotation, a full walk with ``ctr run -t``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import RUNPHI
from tests.engine.harness import BANNER, DEMO, INMATE, PROMPT, command, exit_code, spam_lines
from tests.unit.logkit import cri_records, from_cri, from_json, from_timed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.harness import Engine

pytestmark = pytest.mark.qemu

LINES = 2000
KINDS = ("--annotation", "org.runphi.log=raw,cri,json-file,timed")


def test_every_kind_of_log_under_ctr(engine: Engine, place: Path) -> None:
    name = engine.name()
    child = engine.spawn(*engine.run_args(DEMO, name, tty=True, env=INMATE, options=KINDS))
    child.expect(BANNER)
    child.expect(PROMPT)
    command(child, b"spam %d" % LINES)
    child.send(b"raw\r")
    child.expect(b"ctrl-d ends")
    child.send(b"\x1b[2Jcleared\x04")
    child.expect(PROMPT)
    logs = place / "log" / name
    shown = engine.runphi("logs", "--safe", name)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "^[[2Jcleared" in shown.stdout
    assert "\x1b" not in shown.stdout
    viewer = engine.spawn_command([str(RUNPHI), "logs", "--tail", "3", name])  # on a terminal: a word about it
    viewer.expect(rb"\[runphi: the log holds control sequences; `runphi logs --safe` shows them as text\]")
    assert exit_code(viewer) == 0
    raw = (logs / "console.log").read_bytes()
    assert spam_lines(raw) == list(range(1, LINES + 1))
    assert raw.endswith(b"> ")
    # the prompt of a guest that waits is in every log
    records = cri_records((logs / "console.cri.log").read_bytes())
    assert records[-1] == (b"stdout", b"P", b"> ")
    assert from_cri((logs / "console.cri.log").read_bytes()) == raw
    assert from_json((logs / "console.json.log").read_bytes()) == raw.decode()
    assert from_timed((logs / "console.timed").read_bytes()) == raw
    # on a terminal, from a copy: the container is removed with its logs
    copy = place / "copy.timed"
    copy.write_bytes((logs / "console.timed").read_bytes())
    child.send(b"exit 0\r")
    assert exit_code(child) == 0
    assert not logs.exists()
    player = engine.spawn_command([str(RUNPHI), "replay", "--speed", "50", str(copy)])
    player.expect(BANNER)
    player.expect(b"line %07d\r+\n" % LINES)
    player.expect(b"\x1b\\[2Jcleared")
    assert exit_code(player) == 0


def test_an_annotation_that_cannot_be_understood(engine: Engine) -> None:
    name = engine.name()
    options = ("--annotation", "org.runphi.log=cri:path=/etc/shadow")
    child = engine.spawn(*engine.run_args(DEMO, name, tty=True, env=INMATE, options=options))
    child.expect(rb"cannot log to /etc/shadow: log\.path_dirs allows nowhere")
    assert exit_code(child) == 1
    engine.ctr("containers", "delete", name)
