# SPDX-License-Identifier: Apache-2.0
"""What an image may ask for and what only its caller: podman's storage tells whose an annotation is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async.config.schema import Config
from runphi_async.container.bundle import read_bundle
from runphi_async.errors import RunphiError, SpecError
from runphi_async.partition import bootconfig, origin, request
from runphi_async.partition.podannotations import of_container

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = Config().annotations.of_images
CONTAINER, IMAGE = "c" * 64, "1" * 64


class Storage:
    """A storage as podman 4.3 lays it out, with one container of one image."""

    def __init__(
        self, path: Path, manifest: dict[str, str], said: dict[str, str], listed: str = "containers.json"
    ) -> None:
        self.bundle = path / "overlay-containers" / CONTAINER / "userdata"
        self.bundle.mkdir(parents=True)
        self.image = path / "overlay-images" / IMAGE
        self.image.mkdir(parents=True)
        (self.image / "manifest").write_text(json.dumps({"schemaVersion": 2, "annotations": manifest}))
        self.list = path / "overlay-containers" / listed
        self.list.write_text(json.dumps([{"id": "d" * 64, "image": ""}, {"id": CONTAINER, "image": IMAGE}]))
        (path / "rootfs").mkdir()
        spec: dict[str, Any] = {"root": {"path": str(path / "rootfs")}, "annotations": {**manifest, **said}}
        (self.bundle / "config.json").write_text(json.dumps(spec))

    def read(self, allowed: tuple[str, ...] = DEFAULT) -> request.PartitionRequest | None:
        return read_bundle(str(self.bundle), allowed).request


def named(**settings: str) -> dict[str, str]:
    return {f"org.runphi.{name.replace('_', '-')}": value for name, value in settings.items()}


@pytest.mark.parametrize("listed", ["containers.json", "volatile-containers.json"])
@pytest.mark.parametrize(
    "manifest",
    [
        named(log="none"),
        named(memory="500G"),
        named(vcpus="200"),
        named(backend="xen"),
        named(colors="0-3"),
        named(console_port="virtual"),
        {"org.runphi.xen.disk": "/dev/sda,raw,xvda,w"},
        named(inmate="host:/boot/vmlinuz"),
        {"org.runphi.memory/plc": "500G", "io.kubernetes.cri.container-name": "plc"},
    ],
    ids=str,
)
def test_what_only_the_caller_may_set(tmp_path: Path, manifest: dict[str, str], listed: str) -> None:
    with pytest.raises(SpecError, match="it comes from the image, and only who runs the image may set it"):
        Storage(tmp_path, {"org.runphi.linux": "1", **manifest}, {}, listed).read()


def test_what_an_image_may_set(tmp_path: Path) -> None:
    manifest = named(inmate="/boot/x", cmdline="a", machine="q35", load_address="0x40200000")
    found = Storage(tmp_path, manifest, named(memory="64M", vcpus="2", log="none")).read()
    assert found is not None
    assert (found.inmate, found.memory, found.vcpus, found.log) == ("/boot/x", 64 << 20, 2, ())


def test_the_callers_word_is_the_callers(tmp_path: Path) -> None:
    """It may set what the image set too; the same value cannot be told from the image's."""
    (tmp_path / "a").mkdir()
    found = Storage(tmp_path / "a", named(memory="500G"), named(memory="64M")).read()
    assert found is not None
    assert found.memory == 64 << 20


def test_the_configuration_may_trust_images(tmp_path: Path) -> None:
    assert Storage(tmp_path, named(memory="1G"), {}).read(("memory",)) is not None


def test_a_further_manifest_counts_as_well(tmp_path: Path) -> None:
    storage = Storage(tmp_path, {}, named(log="none"))
    assert storage.read() is not None
    (storage.image / "=bWFuaWZlc3Qtc2hhMjU2OjUw").write_text(json.dumps({"annotations": named(log="none")}))
    with pytest.raises(SpecError, match="it comes from the image"):
        storage.read()


@pytest.mark.parametrize("how", ["no manifest", "no image", "not listed", "fifo", "no json", "another image"])
def test_where_it_cannot_be_told_it_is_refused(tmp_path: Path, how: str) -> None:
    storage = Storage(tmp_path, {}, named(memory="64M"))
    manifest = storage.image / "manifest"
    if how in ("no manifest", "fifo"):
        manifest.unlink()
        if how == "fifo":
            os.mkfifo(manifest)
    elif how == "no image":
        storage.image.rename(tmp_path / "away")
    elif how == "not listed":
        storage.list.write_text("[]")
    elif how == "no json":
        storage.list.write_text("{")
    else:
        storage.list.write_text(json.dumps([{"id": CONTAINER, "image": "../../x"}]))
    with pytest.raises(SpecError, match=r"cannot use annotation org\.runphi\.memory: whether it is the image's or"):
        storage.read()
    assert storage.read(("memory",)) is not None


def test_other_engines_pass_no_manifest_on(tmp_path: Path) -> None:
    storage = Storage(tmp_path, named(memory="64M"), {})
    storage.list.unlink()  # a bundle that looks like podman's, without its storage: CRI-O's
    assert storage.read() is not None
    origin.check_annotations("/run/containerd/x/c1", named(memory="64M"), DEFAULT)


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"inmate": "/x", "rpu_req": True}, "rpu_req"),
        ({"inmate": "/x", "comm": {"a": "shmem"}}, r"comm\.a"),
        ({"inmate": "/x", "starting_vaddress": "0x1000"}, "starting_vaddress"),
        ({"os_var": "linux", "kernel": "/k", "initrd": "/r"}, "linux|kernel|any_ramdisk"),
    ],
)
def test_the_same_for_the_images_own_file(document: dict[str, Any], key: str) -> None:
    config = bootconfig.parse(json.dumps(document).encode())
    origin.check_boot_config(config, DEFAULT)
    with pytest.raises(SpecError, match=rf"cannot use ({key}) of the image's /boot/config\.json"):
        origin.check_boot_config(config, ("inmate",))


TEXTS = st.text(max_size=12)


@given(st.dictionaries(TEXTS | TEXTS.map(lambda text: f"org.runphi.{text}"), TEXTS, max_size=4))
def test_any_annotations(annotations: dict[str, str]) -> None:
    """They are understood or refused, and what is understood holds no control character."""
    from runphi_async.oci.spec import Spec

    try:
        found = request.request(Spec(annotations=of_container(annotations)))
    except RunphiError:
        return
    if found is not None:
        ours = [text for item in annotations.items() if item[0].startswith("org.runphi.") for text in item]
        assert not any(ord(char) < 32 and char != "\t" for text in ours for char in text)
