# SPDX-License-Identifier: Apache-2.0
"""`runphi doctor` on machines that are ill, and the report that is attached to bugs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

from tests.system.place import RUNPHI, ended, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.place import Place

SECRET = "hunter2-is-no-password"
ACTING = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]")
ANNOTATIONS = {"org.runphi.backend": "qemu", "user.pod": f'{{"env": "{SECRET}"}}', "org.runphi.log": "raw"}


def break_configuration(place: Place) -> str:
    path = place.env["RUNPHI_CONFIG"]
    with open(path, "a") as file:
        file.write('\n[qemu]\naccle = "tcg"\n')
    return path


def secretive(place: Place, name: str) -> None:
    """Run a container that has secrets in its environment and arguments."""
    env = ["INMATE=/boot/inmate.elf", f"DB={SECRET}", "API_TOKEN=0123456789"]
    process = {"env": env, "args": ["x", f"--secret={SECRET}"]}
    place.create(name, annotations=ANNOTATIONS, process=process)


def test_a_configuration_that_cannot_be_used(place: Place) -> None:
    path = break_configuration(place)
    assert "cannot start the supervisor" in place.refused("list")
    done = place.call("doctor")
    assert done.returncode == 1
    first, mend, *rest = done.stdout.splitlines()
    assert first.startswith("error   runphi      cannot use the configuration: ")
    assert f"{path}: qemu.accle: unknown key; did you mean qemu.accel?" in first
    assert "to mend it: mend the file" in mend
    assert any(line.startswith("ok      host        Linux ") for line in rest)
    assert any(" qemu " in line for line in rest)
    found = json.loads(place.call("doctor", "--json").stdout)
    assert [finding["area"] for finding in found if finding["level"] == "error"] == ["runphi"]
    report = place.path / "report"
    assert place.must("doctor", "--report", str(report)).startswith(f"wrote {report}: ")
    assert "NOT USABLE: " in report.read_text()
    assert "unrecognized arguments: --nosuch" in place.refused("doctor", "--nosuch")
    assert "look whether this machine" in place.must("doctor", "--help").lower()


def test_a_configuration_that_breaks_while_the_supervisor_runs(place: Place) -> None:
    place.must("list")
    assert "configuration has changed" not in place.must("doctor")
    path = place.env["RUNPHI_CONFIG"]
    with open(path, "a") as file:
        file.write('[supervisor]\nlog_level = "debug"\n')
    assert "the configuration has changed since the supervisor has read it" in place.must("doctor")
    break_configuration(place)
    done = place.call("doctor")
    assert done.returncode == 1
    assert done.stdout.startswith("error   runphi      cannot use the configuration: ")


def test_a_supervisor_that_cannot_be_had(place: Place) -> None:
    place.run_dir.write_text("a file where a directory should be")
    done = place.call("doctor")
    assert done.returncode == 1
    assert done.stdout.startswith("error   runphi      cannot reach a supervisor: cannot use its directory ")
    assert "## Versions" in place.must("doctor", "--report", "-")
    place.run_dir.unlink()


def test_a_supervisor_that_dies_while_it_answers(place: Place) -> None:
    """The doctor whose supervisor is stopped and killed goes on without one."""
    place.must("list")
    pid, guardian = place.pid(), place.guardian()
    os.kill(guardian, signal.SIGSTOP)  # it is to start no other
    os.kill(pid, signal.SIGSTOP)
    try:
        child = subprocess.Popen([RUNPHI, "doctor"], env=place.env, stdout=subprocess.PIPE, text=True)
        until(lambda: waits(child.pid), "it to wait")
        os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
        out, _ = child.communicate(timeout=60)
    finally:
        os.kill(guardian, signal.SIGCONT)
    assert out.startswith("error   runphi      cannot reach a supervisor: it ended or fell silent")
    assert child.returncode == 1
    ended(pid)
    until(lambda: place.call("version").returncode == 0, "another supervisor")


def waits(pid: int) -> bool:
    """Whether a process has its socket open and sleeps."""
    sockets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    with open(f"/proc/{pid}/stat") as file:
        return any(name.startswith("socket:") for name in sockets) and file.read().rpartition(")")[2].split()[0] == "S"


def test_a_report(place: Place) -> None:
    secretive(place, "c1")
    (container,) = place.containers
    container.must("start")
    container.expect(b"> ")
    container.type(b"echo CONSOLE-WORDS\n")
    container.expect(b"CONSOLE-WORDS")
    (container.record / "vmm.log").write_bytes(b"\x1b]0;evil\x07\x1b[2J" + SECRET.encode() + b"\n## forged\n```\n")
    path = place.path / "report"
    place.must("doctor", "--report", "report", cwd=place.path)
    assert path.stat().st_mode & 0o7777 == 0o600
    data = path.read_bytes()
    assert not ACTING.search(data)
    assert len(data) < 1 << 20
    text = data.decode()
    for heading in ("Findings", "Versions", "Accelerator", "Configuration", "Cgroups", "Limits", "Containers"):
        assert f"\n## {heading}\n" in text
    assert "\n## Container c1\n" in text
    assert re.search(r"VMM: pid \d+, state [SR]", text)
    assert re.search(r"^    \S+Z start", text, re.MULTILINE)
    assert "org.runphi.log = raw" in text
    assert f'log.dir = "{place.path}/log"' in text
    assert "\\x1b]0;evil\\x07\\x1b[2J[masked]" in text
    assert "\n## forged" not in text
    for hidden in (SECRET, "0123456789", "CONSOLE-WORDS", "user.pod", "argv"):
        assert hidden not in text
    assert "CONSOLE-WORDS" in place.must("doctor", "--report", "-", "--with-consoles")
    place.must("kill", container.name, "KILL")
    container.wait()
    assert "stopped, exit code 137: killed by signal 9" in place.must("doctor", "--report", "-")


def test_a_report_without_a_supervisor_shows_the_containers(place: Place) -> None:
    secretive(place, "c1")
    place.containers[0].must("start")
    until(lambda: place.events("c1"), "events")
    os.kill(place.guardian(), signal.SIGTERM)
    pid = place.pid()
    os.kill(pid, signal.SIGTERM)
    ended(pid)
    usual = place.env["RUNPHI_CONFIG"]
    broken = place.path / "broken.toml"
    broken.write_text("not TOML")
    place.env["RUNPHI_CONFIG"] = str(broken)
    text = place.must("doctor", "--report", "-")
    place.env["RUNPHI_CONFIG"] = usual
    assert "## Container c1: last events" in text
    assert SECRET not in text


def test_where_a_report_can_be_written(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    for name, words in {
        "link": "it is a link", "fifo": "it is no ordinary file", ".": "it is a directory",
        "no/where": "no such file or directory", "target/x": "not a directory",
    }.items():  # fmt: skip
        assert words in place.refused("doctor", "--report", str(tmp_path / name))
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "target"]
    target.chmod(0o644)
    place.must("doctor", "--report", str(target))
    assert target.read_text().startswith("# runPHI report\n")
    assert target.stat().st_mode & 0o777 == 0o600
    assert "--with-consoles belongs to --report" in place.refused("doctor", "--with-consoles")
    assert "--json does not go with --report" in place.refused("doctor", "--json", "--report", "-")
