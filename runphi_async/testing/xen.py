# SPDX-License-Identifier: Apache-2.0
"""Xen without Xen: a xenstored, an ``xl`` and domains that are shell scripts on a pty, for tests of the Xen backend.

The behaviour is that of Xen 4.17 with Debian's tools, as far as the backend looks at it: what calls print, the exit
status 0 after failures, domains left behind by a killed create, counted pauses, the empty tty node before the real one,
watches. ``FakeXen.fail`` and its like make calls go wrong. The guest knows the demo inmate's commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import tty
from typing import TYPE_CHECKING, Final

from backends.xen.xenstore import Decoder, Message, Op, encode
from runphi_async.host.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What stands in for /usr/sbin/xl: says what it was called with to the fake, and what the fake answers.
XL: Final = """\
#!/usr/bin/python3 -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "xl.sock"))
    sock.sendall(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd()}).encode() + b"\\n")
    answer = json.loads(sock.makefile().readline() or '{"status": 255, "out": "", "err": ""}')
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["status"])
"""
#: The guest; it writes how it ends into the file named by its first argument.
GUEST: Final = r"""
printf 'runPHI demo inmate, fake Xen\r\n> '
while IFS= read -r line; do
    printf '%s\r\n' "$line"
    argument=${line#* }
    case $line in
        echo\ *) printf '%s\r\n' "$argument" ;;
        spam\ *)
            i=0
            while [ "$i" -lt "$argument" ]; do
                i=$((i + 1))
                printf 'line %07d\r\n' "$i"
            done
            ;;
        exit\ *) echo "exit $argument" >"$1"; exit ;;
        crash) printf 'crashing\r\n'; echo "reason 3" >"$1"; exit ;;
        hang) printf 'hanging\r\n'; while :; do sleep 1000 & wait; done ;;
        reset) printf 'resetting\r\n'; echo "reason 1" >"$1"; exit ;;
    esac
    printf '> '
done
"""
_SETTING: Final = re.compile(r'^(\w+) = "?([^"\n]*)"?$', re.MULTILINE)
_PAUSED_AT_FIRST: Final = 1


class FakeDomain:
    """One domain."""

    def __init__(self, domid: int, settings: dict[str, str], directory: Path) -> None:
        self.domid = domid
        self.name = settings.get("name", "(null)")
        self.uuid = settings.get("uuid", "00000000-0000-0000-0000-000000000000")
        self.settings = settings
        self.pauses = _PAUSED_AT_FIRST
        self.reason: int | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.waiter: asyncio.Task[None] | None = None
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        fcntl.fcntl(self.slave, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        self.word = directory / f"word-{domid}"

    @property
    def letters(self) -> str:
        """The six letters of xl's state column."""
        how = {None: "-", 0: "-", 1: "r", 2: "s", 3: "c", 4: "w", 5: "S"}.get(self.reason, "?")
        shut = self.reason is not None
        return f"-{'-' if shut else 'b'}{'p' if self.pauses else '-'}{'s' if shut else '-'}{how}-"


class FakeXen:
    """The hypervisor with its tools; an asynchronous context manager.

    :ivar fail: verbs that answer with (status, stderr) instead of doing anything.
    :ivar late: verbs that do what they do and then never answer.
    :ivar calls: every command line so far.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.xl = str(directory / "xl")
        self.socket = str(directory / "xenstored.sock")
        self.nodes: dict[str, bytes] = {}
        self.domains: dict[int, FakeDomain] = {}
        self.fail: dict[str, tuple[int, str]] = {}
        self.late: set[str] = set()
        self.calls: list[list[str]] = []
        self.free_mib = 1024
        self._next = 1
        self._watches: list[tuple[asyncio.StreamWriter, str, str]] = []
        self._servers: list[asyncio.Server] = []
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeXen:
        (self.directory / "xl").write_text(XL)
        os.chmod(self.xl, 0o755)
        self._servers = [
            await asyncio.start_unix_server(self._serve_xl, str(self.directory / "xl.sock")),
            await asyncio.start_unix_server(self._serve_store, self.socket),
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for domid in list(self.domains):
            await self.destroy(domid)
        for server in self._servers:
            server.close()
        for task in tuple(self._talks):
            task.cancel()
            await asyncio.wait((task,))

    # Section: xl

    async def _serve_xl(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._talking(writer):
            call = json.loads(await reader.readline())
            argv = call["argv"]
            self.calls.append(argv)
            status, out, err = await self._answer(argv, call["cwd"])
            if argv[0] in self.late:
                await reader.read()  # until it is killed
                return
            writer.write(json.dumps({"status": status, "out": out, "err": err}).encode() + b"\n")
            await writer.drain()

    @contextlib.contextmanager
    def _talking(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            yield
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._talks.discard(task)
            self._watches = [watch for watch in self._watches if watch[0] is not writer]
            writer.close()

    async def _answer(self, argv: list[str], cwd: str) -> tuple[int, str, str]:
        verb, words = argv[0], argv[1:]
        if verb in self.fail:
            status, err = self.fail[verb]
            return status, "", err
        match verb:
            case "create":
                self.create(os.path.join(cwd, words[-1]))
            case "list":
                return 0, self._list(), ""
            case "info":
                return 0, f"{self.free_mib}\n" if words else self._info(), ""
            case "cpupool-list":
                return 0, "Name               CPUs   Sched     Active   Domain count\nPool-0  2  credit2  y  1\n", ""
            case "pause" | "unpause" | "destroy" | "shutdown":
                domain = self.domains.get(int(words[-1]))
                if domain is None:
                    return 1, "", f"Error: Domain '{words[-1]}' does not exist.\n"
                await self._act(verb, domain)
            case _:
                return 1, "", "command not implemented\n"
        return 0, "", ""

    async def _act(self, verb: str, domain: FakeDomain) -> None:
        if verb == "destroy":
            await self.destroy(domain.domid)
        elif verb == "pause":
            domain.pauses += 1
            self._signal(domain, signal.SIGSTOP)
        elif verb == "unpause" and domain.pauses:
            domain.pauses -= 1
            if not domain.pauses:
                await self._run(domain)
        elif verb == "shutdown":
            self.end(domain, 0)

    def _list(self) -> str:
        rows = ["Name   ID   Mem VCPUs\tState\tTime(s)   UUID   Reason-Code\tSecurity Label"]
        for domain in self.domains.values():
            reason = "-" if domain.reason is None else f"{domain.reason:x}"
            rows.append(
                f"{domain.name:40} {domain.domid:5} {32:5} {1:5}     {domain.letters:>6} {0.0:8.1f} {domain.uuid}"
                f" {reason:>8} {'-':>16}"
            )
        return "\n".join(rows) + "\n"

    def _info(self) -> str:
        return (
            "nr_cpus                : 2\nxen_major              : 4\nxen_minor              : 17\n"
            "virt_caps              : pv hvm hap shadow\nxen_scheduler          : credit2\n"
        )

    # Section: domains

    def create(self, path: str) -> FakeDomain:
        """Make a domain of a configuration file, paused."""
        with open(path) as file:
            settings = dict(_SETTING.findall(file.read()))
        domain = FakeDomain(self._next, settings, self.directory)
        self._next += 1
        self.domains[domain.domid] = domain
        home = f"/local/domain/{domain.domid}"
        self.put(f"{home}/name", domain.name.encode())
        self.put(f"{home}/console/tty", b"")
        self.put(f"{home}/console/tty", os.ttyname(domain.slave).encode())
        return domain

    async def _run(self, domain: FakeDomain) -> None:
        if domain.process is None:
            domain.process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", GUEST, "guest", str(domain.word),
                stdin=domain.master, stdout=domain.master, stderr=domain.master, start_new_session=True,
            )  # fmt: skip
            domain.waiter = asyncio.create_task(self._wait(domain), name=f"fake domain {domain.domid}")
        else:
            self._signal(domain, signal.SIGCONT)

    async def _wait(self, domain: FakeDomain) -> None:
        assert domain.process is not None
        await domain.process.wait()
        word, _, number = domain.word.read_text().partition(" ") if domain.word.exists() else ("", "", "")
        if word == "reason":
            self.end(domain, int(number))
        elif word == "exit":
            code = int(number)
            own = code == 0 or 6 <= code < 255
            if not own:
                self.put(f"/local/domain/{domain.domid}/data/exit-code", b"%d" % code)
            self.end(domain, code if own else 0)

    def end(self, domain: FakeDomain, reason: int) -> None:
        """Let a domain shut down."""
        domain.reason = reason
        self._tell("@releaseDomain")

    async def destroy(self, domid: int) -> None:
        """Destroy a domain."""
        domain = self.domains.pop(domid)
        if domain.waiter is not None:
            domain.waiter.cancel()
            await asyncio.wait((domain.waiter,))
        if domain.process is not None:
            self._signal(domain, signal.SIGKILL)
            await domain.process.wait()
        os.close(domain.master)
        os.close(domain.slave)
        for path in [path for path in self.nodes if path.startswith(f"/local/domain/{domid}/")]:
            del self.nodes[path]
        self._tell("@releaseDomain")

    @staticmethod
    def _signal(domain: FakeDomain, number: int) -> None:
        if domain.process is not None and domain.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process = Process(domain.process.pid)
                process.send(number)
                process.close()

    # Section: xenstored

    def put(self, path: str, value: bytes) -> None:
        """Write a node as a guest or a tool would."""
        self.nodes[path] = value
        self._tell(path)

    def _tell(self, path: str) -> None:
        for writer, watched, token in self._watches:
            if path == watched or path.startswith(watched + "/"):
                writer.write(encode(Message(Op.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode())))

    async def _serve_store(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        with self._talking(writer):
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    self._reply(message, writer)
                await writer.drain()

    def _reply(self, message: Message, writer: asyncio.StreamWriter) -> None:
        path, _, rest = message.payload.partition(b"\0")
        name = path.decode()
        answer, op, event = b"OK\0", message.op, b""
        match op:
            case Op.READ if name in self.nodes:
                answer = self.nodes[name]
            case Op.WRITE:
                self.put(name, rest)
            case Op.DIRECTORY if self._below(name):
                answer = b"".join(child.encode() + b"\0" for child in self._below(name))
            case Op.RM:
                for node in [node for node in self.nodes if node == name or node.startswith(name + "/")]:
                    del self.nodes[node]
            case Op.WATCH:
                token = rest.rstrip(b"\0").decode()
                self._watches.append((writer, name, token))
                event = encode(Message(Op.WATCH_EVENT, 0, 0, f"{name}\0{token}\0".encode()))
            case Op.UNWATCH:
                token = rest.rstrip(b"\0").decode()
                self._watches.remove((writer, name, token))
            case _:
                op, answer = Op.ERROR, b"ENOENT\0"
        writer.write(encode(Message(op, message.request, message.transaction, answer)) + event)

    def _below(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        return sorted({node[len(prefix) :].split("/")[0] for node in self.nodes if node.startswith(prefix)})
