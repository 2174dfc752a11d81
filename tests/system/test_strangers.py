# SPDX-License-Identifier: Apache-2.0
"""What images and guests write, with a real supervisor and a real QEMU: none of it commands the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.place import RUNPHI, until

if TYPE_CHECKING:
    from tests.system.place import Place

#: more than the supervisor has threads for reading files
MANY = 48


def test_a_nul_in_an_annotation_adds_no_option(place: Place) -> None:
    target = place.path / "written"
    trick = f"x\0-chardev\0file,id=p,path={target}\0-serial\0chardev:p"
    container = place.create("trick", annotations={"org.runphi.cmdline": trick})
    assert container.created == 1
    assert "$.annotations.org.runphi.cmdline: expected text, got a NUL character in it" in container.error
    assert not target.exists()
    assert not (place.run_dir / "trick").exists()


def test_qemu_opens_no_name_of_an_image(place: Place) -> None:
    """A RAM disk called "/boot/x y": QEMU cut it at the blank, and /boot/x was a link to a file of the host."""
    secret = place.path / "secret"
    secret.write_text("of the host")
    bundle = place.bundle("cut", process={"env": []})
    boot = bundle / "rootfs" / "boot"
    shutil.copy(place.inmates / "demo-x86_64-multiboot.elf", boot / "leak, me.elf")
    (boot / "x").symlink_to(secret)
    (boot / "x y").write_text("a RAM disk")
    (boot / "config.json").write_text(json.dumps({"inmate": "/boot/leak, me.elf", "ramdisk": "/boot/x y"}))
    container = place.create("cut", made=bundle)
    assert container.created == 0, container.error
    assert (container.record / "ramdisk").read_text() == "a RAM disk"
    words = Path(f"/proc/{container.vmm()}/cmdline").read_bytes().decode().split("\0")
    assert words[words.index("-kernel") + 1] == "image"
    assert words[words.index("-initrd") + 1] == "ramdisk"
    assert not any("rootfs" in word for word in words)
    container.must("start")
    container.expect(b"> ")
    # loaded: the guest has it, and the record no more
    until(lambda: not (container.record / "ramdisk").exists(), "the copies given up")
    assert not (container.record / "image").exists()


def test_an_image_changed_between_check_and_use(place: Place) -> None:
    """The link is followed once, below the rootfs; afterwards it may lead where it likes."""
    bundle = place.bundle("swap")
    boot = bundle / "rootfs" / "boot"
    (boot / "inmate.elf").rename(boot / "real.elf")
    (boot / "inmate.elf").symlink_to("/boot/real.elf")
    container = place.create("swap", made=bundle)
    assert container.created == 0, container.error
    (boot / "real.elf").unlink()
    (boot / "real.elf").symlink_to("/etc/shadow")
    container.must("start")
    container.expect(b"> ")


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["fifo", "endless"])
def test_files_of_qemus_directory_replaced(place: Place, put: object) -> None:
    assert callable(put)
    container = place.running("swapped")
    for name in ("vmm.log", "vmm.status", "guest.exit", "events.jsonl", "ev.log", "rules.json"):
        (container.record / name).unlink(missing_ok=True)
        put(str(container.record / name))
    assert container.state()["status"] == "running"
    container.call("pause")
    container.call("resume")
    place.must("kill", "swapped", "KILL")
    assert container.wait() == 137
    container.must("delete")


def test_fifos_in_the_place_of_documents_hold_nobody_up(place: Place) -> None:
    place.must("version")
    bundle = place.bundle("fifo")
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    board = place.path / "board.toml"
    os.mkfifo(board)
    words = [
        ["create", "--bundle", str(bundle), "c"],
        ["plan", "--bundle", str(bundle)],
        ["board", "check", str(board)],
        ["cell", "show", str(board)],
    ]
    asked = [
        subprocess.Popen(
            [RUNPHI, "--root", str(place.root), *words[number % len(words)]],
            env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number in range(MANY)
    ]  # fmt: skip
    for process in asked:
        _, error = process.communicate(timeout=20)
        assert process.returncode != 0
        assert "not a regular file" in error or "runphi" in error
    assert place.running("after").state()["status"] == "running"


def test_resources_on_a_stdin_that_never_ends(place: Place) -> None:
    container = place.running("c")
    reader, writer = os.pipe()
    asked = [
        subprocess.Popen(
            [RUNPHI, "--root", str(place.root), "update", "--resources", "-", "c"],
            env=place.env, stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for _ in range(MANY)
    ]  # fmt: skip
    try:
        assert container.state()["status"] == "running"
        assert place.running("d").state()["status"] == "running"
    finally:
        os.close(reader)
        os.close(writer)
        for process in asked:
            process.wait(timeout=20)


def test_a_damaged_record_is_taken_over_all_the_same(place: Place) -> None:
    """Its QEMU went on without a record; what does not change of a container is written down twice."""
    sick, sound = place.running("sick"), place.running("sound")
    vmm = sick.vmm()
    (sick.record / "state.json").write_bytes(b'{"version":1,"id":')
    place.kill_supervisor()
    assert sound.state()["status"] == "running"
    assert sick.state()["status"] == "running"
    sick.type(b"echo still here\n")
    sick.expect(b"still here")
    place.must("kill", "sick", "KILL")
    assert sick.wait() == 137
    assert not Path(f"/proc/{vmm}").exists()
    sick.must("delete")


def test_a_record_of_which_nothing_is_left(place: Place) -> None:
    sick, sound = place.running("sick"), place.running("sound")
    vmm = sick.vmm()
    for name in ("state.json", "made.json"):
        (sick.record / name).write_bytes(b"\0")
    place.kill_supervisor()
    assert sound.state()["status"] == "running"
    assert sick.state()["status"] == "stopped"
    until(lambda: Path(f"/proc/{vmm}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z", "the end of its QEMU")
    sick.must("delete")
    assert not (place.run_dir / "sick").exists()
    assert not (place.root / "sick").exists()
