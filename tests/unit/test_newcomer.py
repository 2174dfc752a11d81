# SPDX-License-Identifier: Apache-2.0
"""A new backend is a folder and one line in the table: everything that asks for backends knows it then."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

import pytest

from backends import configured, detect
from backends.detect import Detection
from runphi_async import wire
from runphi_async.commands.verbs import VERBS
from runphi_async.config.reference import reference
from runphi_async.doctor import checkup, versions
from runphi_async.errors import ConfigError, SpecError
from runphi_async.oci.spec import Spec
from runphi_async.partition.request import request
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.life import Life
from tests.unit import clikit
from tests.unit.clikit import answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runphi_async.container.registry import Supervisor

#: the folder: what a backend must have, and nothing of it stands anywhere else
FOLDER: Final = {
    "__init__.py": '"""A hypervisor that came today."""\n',
    "settings.py": '''
from typing import Annotated

from backends.base import Brings
from runphi_async.config.section import BackendSection, doc


class Newcomer(BackendSection, frozen=True):
    """The backend that came today."""

    greeting: Annotated[str, doc("What doctor says of it.")] = "hello"

    def programs(self) -> tuple[str, ...]:
        return ("newcomer-vmm",)


BRINGS = Brings(section=Newcomer, environment={"RUNPHI_GREETING": "greeting"}, ledger="newcomer.db", looks_ahead=True,
    wishes=True)
''',
    "backend.py": """
from backends.base import Discrepancy, Finding, Level
from newcomer.settings import Newcomer
from runphi_async.testing.backend import FakeBackend


class NewcomersBackend(FakeBackend):
    name = "newcomer"
    looked_ahead = 0

    def __init__(self, config, run_dir):
        super().__init__()
        self._greeting = config.of(Newcomer).greeting

    async def examine(self):
        return [Finding(Level.OK, self.name, self._greeting)]

    async def look_ahead(self):
        self.looked_ahead += 1

    async def look_over(self):
        return [Discrepancy("", "somebody else's machine")]


def backend(config, run_dir):
    return NewcomersBackend(config, run_dir)
""",
}


@pytest.fixture(autouse=True)
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "lib" / "newcomer"
    folder.mkdir(parents=True)
    for name, text in FOLDER.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(detect, "BACKENDS", {**detect.BACKENDS, "newcomer": "newcomer"})  # the line
    yield
    for module in [name for name in sys.modules if name.partition(".")[0] == "newcomer"]:
        del sys.modules[module]


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    (tmp_path / "run").mkdir()
    (tmp_path / "config.toml").write_text('backend = "newcomer"\n[newcomer]\ngreeting = "good morning"\n')
    return clikit.supervisor(configured.load(str(tmp_path / "config.toml")), str(tmp_path / "run"))


def bundle(path: Path) -> Path:
    (path / "rootfs" / "boot").mkdir(parents=True)
    (path / "rootfs" / "boot" / "inmate.elf").write_bytes(b"\x7fELF")
    process = {"args": ["/x"], "env": ["INMATE=/boot/inmate.elf"], "cwd": "/"}
    spec = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process}
    (path / "config.json").write_text(json.dumps(spec))
    return path


def test_its_table_is_part_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = reference(configured.schema().kind())
    assert "## `[newcomer]`\n\nThe backend that came today." in page
    assert '| `greeting` | text | `"hello"` | What doctor says of it. |' in page
    (tmp_path / "c.toml").write_text("[newcomer]\ngreting = 1\n")
    with pytest.raises(ConfigError, match=r"newcomer.greting: unknown key; did you mean newcomer.greeting\?"):
        configured.load(str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text("[newcomer]\ngreeting = 1\n")
    with pytest.raises(ConfigError, match=r"newcomer.greeting: expected str, got int; the default is \"hello\""):
        configured.load(str(tmp_path / "c.toml"))
    monkeypatch.setenv("RUNPHI_GREETING", "from outside")
    (tmp_path / "c.toml").write_text("")
    read = configured.load(str(tmp_path / "c.toml"))
    assert getattr(read, "newcomer").greeting == "from outside"  # noqa: B009 - the type is composed
    assert "newcomer-vmm" in configured.programs(read)


async def test_doctor_examines_it(supervisor: Supervisor) -> None:
    found = await checkup.examine(supervisor.detection)
    assert [finding.text for finding in found if finding.area == "newcomer"] == ["good morning"]
    assert any(line.startswith("newcomer-vmm") for line in await versions.versions(supervisor.config))


def test_verbs_that_backends_bring_are_there() -> None:
    assert {verb for brings in detect.brought().values() for verb in brings.verbs} <= set(VERBS)


def test_its_own_annotations_reach_it() -> None:
    annotations = {"org.runphi.inmate": "/i", "org.runphi.newcomer.mood": "happy"}
    found = request(Spec(annotations=annotations), backends=detect.with_wishes())
    assert found is not None
    assert found.own == {"newcomer.mood": "happy"}
    with pytest.raises(SpecError, match=r"org\.runphi\.newcomer\.mood: there is no such setting"):
        request(Spec(annotations=annotations))


async def test_features_name_it(supervisor: Supervisor) -> None:
    assert "newcomer" in (await answer(supervisor, "features")).said(wire.OUT)


async def test_a_bundle_is_planned_for_it(supervisor: Supervisor, tmp_path: Path) -> None:
    call = await answer(supervisor, "plan", str(bundle(tmp_path / "web")))
    assert call.status == 0, call.said(wire.ERR)
    assert "backend = newcomer" in call.said(wire.OUT)


async def test_a_guest_of_it_lives_and_ends(supervisor: Supervisor, tmp_path: Path) -> None:
    backend = await detect.backend("newcomer", supervisor.detection)
    (tmp_path / "c1").mkdir()
    life = Life(backend, tmp_path / "c1")
    await life.create(GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/"))
    await life.start()
    await life.prompt()
    life.type(b"exit 3\n")
    assert (await life.end()).code == 3
    await life.close()


async def test_it_takes_part_in_the_start_of_a_supervisor(supervisor: Supervisor, tmp_path: Path) -> None:
    detection = Detection(supervisor.config, str(tmp_path / "run"), {})
    assert await detect.look_over(detection) == []  # nobody was ever given anything
    assert "newcomer" not in detection.known
    (tmp_path / "run" / "newcomer.db").touch()
    assert [odd.text for odd in await detect.look_over(detection)] == ["somebody else's machine"]
    await detect.look_ahead(detection)
    assert getattr(detection.known["newcomer"], "looked_ahead") == 1  # noqa: B009 - the type is not there before
