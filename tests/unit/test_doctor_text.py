# SPDX-License-Identifier: Apache-2.0
"""Strangers' text in a report: bounded, harmless, without secrets."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runphi_async.doctor import text as doctor_text
from runphi_async.doctor.text import LINE_MAX, MASK, REPORT_MAX, Secrets, Section, clean, mask, render

#: what may stand in a report beside printable characters
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ANY_TEXT = st.text(st.characters() | st.sampled_from("\n\r\t\x1b\x9b\x00\u202e\x85\u2028`#"))


def one(text: str, secrets: Secrets | None = None) -> list[str]:
    return list(clean([text], secrets))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("password=hunter2 and more", "hunter2"),
        ('{"db_password": "hunter 2"}', "hunter 2"),
        ("API_KEY: 0123abcd", "0123abcd"),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("curl -H 'X: Bearer abc.def'", "abc.def"),
        ("--registry-token deadbeef", "deadbeef"),
        ("pull https://me:geheim@registry.example/x", "geheim"),
        ("got ghp_0123456789abcdef0123", "ghp_0123"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJhbGci"),
        ("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj", "MIIEvQ"),
    ],
)
def test_what_looks_like_a_credential(text: str, hidden: str) -> None:
    (shown,) = one(text)
    assert hidden not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "text",
    [
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0ac08cf6dbd5e9a0b0f8d4",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0ac08cf6dbd5e9a0b0f8d4",
        "cannot open /var/lib/runphi/guest/vmlinux: no such file or directory",
        "docs at https://toml.io and http://x/y",
        "qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied",
        "/usr/share/secrets is mounted",
    ],
)
def test_what_a_report_is_for_stays(text: str) -> None:
    assert one(text) == [text]


def test_a_key_of_several_lines() -> None:
    key = ["a", "-----BEGIN RSA PRIVATE KEY-----", "MIIE", "short", "-----END RSA PRIVATE KEY-----", "b"]
    assert list(mask(key)) == ["a", MASK, MASK, MASK, MASK, "b"]


def test_environments_are_hidden_and_what_is_booted_is_not() -> None:
    entries = [
        "DB=geheim123",
        "INMATE=/boot/inmate.elf",
        "PATH=/usr/bin",
        "DEBUG=true",
        "N=1",
        "TWO=line one\nline two",
    ]
    secrets = Secrets(doctor_text.environment(entries))
    assert one("x geheim123 /boot/inmate.elf /usr/bin true 1", secrets) == [
        f"x {MASK} /boot/inmate.elf /usr/bin true 1"
    ]
    assert one("the line two of it", secrets) == [f"the {MASK} of it"]


def test_nothing_of_strangers_is_a_heading_or_ends_a_block() -> None:
    report = render("# head\n", [Section("x", ("# not\n## not", "```", "  \r## not"))], Secrets(())).decode()
    assert [line for line in report.splitlines() if line and not line.startswith("    ")] == ["# head", "## x"]


def test_a_name_cannot_make_a_heading() -> None:
    report = render("", [Section("Container a\n## b\x1b[m", ("x",), foreign=True)], Secrets(())).decode()
    assert report.splitlines()[1] == "## Container a ## b\\x1b[m"


def test_the_end_of_a_log_is_what_counts() -> None:
    lines = tuple(f"line {i}" for i in range(1000))
    report = render("", [Section("log", lines, last=True, limit=100), Section("top", lines, limit=100)], Secrets(()))
    assert "line 999\n" in report.decode()
    assert "line 0\n" in report.decode()
    assert "(993 earlier lines left out)" in report.decode()


@given(lines=st.lists(ANY_TEXT, max_size=30), titles=st.lists(ANY_TEXT, min_size=1, max_size=3), last=st.booleans())
def test_whatever_was_said_a_report_is_harmless(lines: list[str], titles: list[str], last: bool) -> None:
    sections = [Section(title, tuple(lines), foreign=True, last=last, limit=2000) for title in titles]
    data = render("# head\n", sections, Secrets(()))
    text = data.decode()
    assert not ACTING.search(text)
    headings = [line for line in text.split("\n") if line and not line.startswith("    ")]
    assert len(headings) == 1 + len(titles)
    assert all(len(line) <= LINE_MAX + 40 for line in text.split("\n"))
    assert len(data) < 2400 * len(titles) + sum(map(len, headings)) * 4 + 100


@given(
    secret=st.text(min_size=4, max_size=40),
    around=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=5),
    cut=st.integers(0, 500),
)
def test_no_value_of_an_environment_is_shown(secret: str, around: list[tuple[str, str]], cut: int) -> None:
    assume(len(secret.strip()) >= 4)
    assume(secret.lower() not in doctor_text.PLAIN_VALUES)
    lines = tuple("y" * cut + before + secret + after for before, after in around)
    empty = render("", [Section("log", ("", "(9 earlier lines left out) [masked] … (9 characters)"))], Secrets(()))
    assume(secret not in empty.decode())
    assume(not re.fullmatch(r"[\sy\d]+", secret))  # indentation, our own filling and our counts
    data = render("", [Section("log", lines, foreign=True)], Secrets([secret]))
    assert secret not in data.decode()


@settings(max_examples=20, deadline=None)
@given(st.text("a\x1bé\u20ac", min_size=1, max_size=60), st.integers(1, 40))
def test_a_report_has_a_size(piece: str, count: int) -> None:
    sections = [Section("log", (piece * 8,) * 300, limit=40 << 10) for _ in range(count)]
    assert len(render("", sections, Secrets(()))) <= REPORT_MAX


@pytest.mark.parametrize("piece", ["a", "password", "a=", "-", "://", "eyJ", " ", "-----BEGIN ", "\x1b"])
def test_no_line_is_long_to_look_at(piece: str) -> None:
    """What a guest prints is no reason to compute for minutes."""
    begun = time.process_time()
    (line,) = one(piece * (1 << 20))
    assert len(line) <= LINE_MAX + 40
    assert time.process_time() - begun < 5
