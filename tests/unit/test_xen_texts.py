# SPDX-License-Identifier: Apache-2.0
"""What Xen's tools print, and what is written for them: states, error texts, xl.cfg, exit codes. All pure functions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Evidence
from backends.xen import xlcfg
from backends.xen.exitcode import End, verdict
from backends.xen.faults import FAULTS, explain
from backends.xen.states import Domain, Reason, from_xc, parse_list
from runphi_async.errors import BackendError, PlanError

LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label
Domain-0                                     0  1280     2     r-----     111.8 00000000-0000-0000-0000-000000000000        -                -
c1.879c44ef                                  4    32     1     --p---       0.0 879c44ef-2494-4d63-ad47-ec714d04f38c        -                -
a name with blanks                          12   128     2     -bp---       3.5 11111111-2222-3333-4444-555555555501        -                -
tpv                                         13    32     1     ---s--       0.2 cf7d16be-c558-4a2c-95aa-9e4dc9b03363        0                -
own                                         14    32     1     ---s?-       0.2 cf7d16be-c558-4a2c-95aa-9e4dc9b03364       2a                -
crash                                       15    32     1     ---sc-       0.2 cf7d16be-c558-4a2c-95aa-9e4dc9b03365        3                -
(null)                                      79     0     0     --p--d       0.0 cf7d16be-c558-4a2c-95aa-9e4dc9b03366        -                -
"""  # noqa: E501 - as xl prints it


def test_the_list_of_domains() -> None:
    found = {domain.domid: domain for domain in parse_list(LIST)}
    assert list(found) == [0, 4, 12, 13, 14, 15, 79]
    assert found[4] == Domain(4, "879c44ef-2494-4d63-ad47-ec714d04f38c", True, False, False, None, None)
    assert found[12].paused
    assert found[12].ran
    assert [found[number].reason for number in (13, 14, 15)] == [0, 42, Reason.CRASH]
    assert found[79].dying
    assert not found[0].paused


def test_a_row_that_is_none_is_refused() -> None:
    with pytest.raises(BackendError, match="cannot understand what xl list -v says: 'libxl: error"):
        parse_list(LIST + "libxl: error: something else\n")


def test_every_combination_of_letters() -> None:
    for letters in itertools.product("r-", "b-", "p-", "s-", "-rscwS?", "d-"):
        (domain,) = parse_list(f"x  7  32  1  {''.join(letters)}  0.0 cf7d16be-c558-4a2c-95aa-9e4dc9b03363  2a  -")
        assert domain.paused == (letters[2] == "p")
        assert domain.shutdown == (letters[3] == "s")
        assert domain.reason == (42 if letters[3] == "s" else None)
        assert domain.dying == (letters[5] == "d")


def test_what_libxenctrl_says() -> None:
    info = {
        "domid": 3, "dying": 0, "crashed": 0, "shutdown": 0, "paused": 1, "shutdown_reason": 255, "cpu_time": 0,
        "handle": list(bytes.fromhex("879c44ef24944d63ad47ec714d04f38c")),
    }  # fmt: skip
    assert from_xc(info) == Domain(3, "879c44ef-2494-4d63-ad47-ec714d04f38c", True, False, False, None, False)
    assert from_xc({**info, "cpu_time": 1}).ran
    assert from_xc({**info, "shutdown": 1, "shutdown_reason": 42}).reason == 42
    # a crash is not called a shutdown there
    assert from_xc({**info, "crashed": 1, "shutdown_reason": 3}).reason == Reason.CRASH


@pytest.mark.parametrize(
    ("stderr", "said", "hint"),
    [
        ("ERROR:  Can't find hypervisor information in sysfs!", "this machine does not run Xen", "boot it with Xen"),
        (
            'libxl: error: libxl_domain.c:81:libxl__domain_rename: Domain 4:Domain with name "a" already exists.',
            'a domain named "a" is already there',
            "xl list",
        ),
        (
            "panic: xg_dom_boot.c:119: xc_dom_boot_mem_init: can't allocate low memory for domain: Out of memory\n",
            "Xen has not enough free memory",
            "dom0_mem=",
        ),
        (
            "panic: xg_dom_core.c:536: xc_dom_chk_alloc_pages: segment kernel too large (0x614 > 0x100 - 0x0 pages)",
            "the guest's memory is too small",
            "org.runphi.memory",
        ),
        ("panic: xg_dom_core.c:205: failed to open file '/nope': No such file or directory", "cannot open /nope", None),
        (
            "xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel",
            "no kernel that Xen can start",
            "ELF",
        ),
        (
            "Domain 96:device model /usr/libexec/xen-qemu-system-i386 is not executable: No such file or directory",
            "there is none at /usr/libexec/xen-qemu-system-i386",
            "qemu-system-xen",
        ),
        (
            "libxl__device_disk_set_backend: Disk vdev=xvda failed to stat: /nofile: No such file or directory",
            "cannot use /nofile as disk xvda: No such file or directory",
            None,
        ),
        (
            "unable to add device with path /local/domain/0/backend/vif/102/0",
            "network device cannot be made",
            "netback",
        ),
        ("libxl__domain_config_setdefault: Illegal pool specified: nopool", "no cpupool nopool", "cpupool-list"),
        ("vcpu hard affinity map is empty", "none of the CPUs", "nr_cpus"),
        ("b.cfg:6: config parsing error near `is': syntax error", "near is", None),
        ("Error: Domain '99' does not exist.", "the domain is gone", None),
        (
            "libxl_create.c:1160:libxl__domain_config_setdefault: passthrough not supported on this platform",
            "Xen uses no IOMMU here",
            "VT-d",
        ),
        (
            "Domain 9:domain 9 device model: spawn failed (rc=-3)\n_destroy_domid: Domain 9:Non-existant domain\n",
            "the device model did not start",
            "qemu-dm-",
        ),
        (
            "libxl: error: something new\nlibxl: error: libxl_domain.c:1183: Domain 9:Non-existant domain\n",
            "xl ended with 3: libxl: error: something new",
            None,
        ),
        ("something nobody has seen\nmore", "xl ended with 3: something nobody has seen", None),
        ("", "xl ended with 3", None),
    ],
)
def test_error_texts_become_words(stderr: str, said: str, hint: str | None) -> None:
    error = explain("create the domain", stderr, 3)
    assert error.msg.startswith("cannot create the domain: ")
    assert said in error.msg
    assert (hint is None) == (error.hint is None)
    assert hint is None or hint in (error.hint or "")


def test_no_text_borrows_the_phrases_engines_look_for() -> None:
    for fault in FAULTS:
        text = (fault.text + (fault.hint or "")).lower()
        assert "does not exist" not in text
        assert "not running" not in text


def test_a_configuration_file() -> None:
    data = xlcfg.render({"name": "a.1", "vcpus": 2, "cpus": ("0", "1"), "vif": (), "irqs": ("5",), "extra": 'a="b c"'})
    assert data == b'name = "a.1"\nvcpus = 2\ncpus = [ "0", "1" ]\nvif = []\nirqs = [ 5 ]\nextra = \'a="b c"\'\n'


@pytest.mark.parametrize(
    "entries",
    [
        {"static_shm": "x"},  # xl takes it without a word
        {"vcpus": 0},
        {"vcpus": True},
        {"vcpus": "2"},
        {"name": ""},
        {"name": "a/b"},
        {"name": "a b"},
        {"extra": "line\nkernel = '/etc/passwd'"},
        {"extra": "back\\slash"},
        {"extra": "both ' and \""},
        {"memory": -1},
        {"disk": ("a\n",)},
    ],
)
def test_what_xl_would_misunderstand_is_refused(entries: dict[str, xlcfg.Value]) -> None:
    with pytest.raises(PlanError):
        xlcfg.render(entries)


@given(st.text(max_size=40))
def test_no_text_gets_out_of_its_quotes(text: str) -> None:
    try:
        line = xlcfg.render({"extra": text}).decode()
    except PlanError:
        return
    mark = line[len("extra = ")]
    assert line == f"extra = {mark}{text}{mark}\n"
    assert mark not in text
    assert "\n" not in text


NOBODY = Evidence(None, 0, True)


@pytest.mark.parametrize(
    ("end", "evidence", "code", "words"),
    [
        (End(reason=0, control_exit=5), NOBODY, 5, "exited with 5"),
        (End(control_exit=127, control_error="cannot find x"), NOBODY, 127, "cannot run the process: cannot find x"),
        (End(control_error="cannot mount"), NOBODY, 126, "cannot mount"),
        (End(reason=0, said=3), NOBODY, 3, "exited with 3"),
        (End(reason=0), NOBODY, 0, "powered off"),
        (End(reason=1), NOBODY, 133, "reset"),
        (End(reason=5), NOBODY, 133, "reset"),
        (End(reason=2), NOBODY, 125, "suspended"),
        (End(reason=255), NOBODY, 125, "no reason"),
        (End(reason=3), NOBODY, 134, "crashed"),
        (End(reason=4), NOBODY, 134, "watchdog"),
        (End(reason=42), NOBODY, 42, "exited with 42"),
        (End(reason=42), Evidence(15, 0, True), 42, "exited with 42"),
        (End(reason=1), Evidence(15, 0, True), 143, "killed by signal 15"),
        (End(), Evidence(9, 0, True), 137, "killed by signal 9"),
        (End(), NOBODY, 137, "destroyed from outside"),
        (End(failure="domain was given up: xl hangs"), NOBODY, 125, "given up"),
    ],
)
def test_exit_codes(end: End, evidence: Evidence, code: int, words: str) -> None:
    found = verdict(end, evidence)
    assert found.code == code
    assert words in found.reason


def test_nothing_but_the_guests_own_word_is_success() -> None:
    for reason, killed in itertools.product([None, 1, 2, 3, 4, 5, *range(6, 256)], [None, 9, 15]):
        assert verdict(End(reason=reason), Evidence(killed, 0, True)).code != 0
