# SPDX-License-Identifier: Apache-2.0
"""The words that thin client and supervisor exchange over the supervisor's socket.

Every engine call pays for importing this module in the client, so it holds constants and little code and
imports nothing. A request is one message: ``MAGIC``, a 32-bit big-endian length and three fields (working directory,
environment, argv; the latter two are fields of fields), with descriptors 0, 1 and 2 attached.
All that follows in both directions are frames: one type byte, a 32-bit big-endian length, the payload.

Several texts in one payload are counted fields, each behind its length: a separator could come in a text of somebody
else's, and begin a further one.

Beside it: ``console``, what is said of one that is shown (for both sides), and for the supervisor ``call``, one request
and its answer, over ``incoming`` and ``outgoing``, the two directions of a connection. What the words mean to a
container does not belong here.
"""

MAGIC = b"RPH2"
SOCKET = "supervisor.sock"
#: The supervisor's directory, with its socket, unless $RUNPHI_RUN_DIR names another one.
DEFAULT_RUN_DIR = "/run/runPHI"
#: Where the containers of an engine are that gives no root directory: runc's.
DEFAULT_ROOT = "/run/runc"

# supervisor → client
OUT = b"o"  #: text for stdout
ERR = b"e"  #: text for stderr
EXIT = b"x"  #: decimal exit status; ends the call
RUNC = b"r"  #: path: become the ordinary runtime
SPAWN = b"s"  #: fields: working directory and argv of the init stub; its descriptors 0.. are attached
GO = b"g"  #: the stub may exec
ATTACH = b"a"  #: a console follows; payload: ``wire.console.AttachStart``
CONSOLE_AT = b"A"  #: offset of the first console byte, as ``wire.console.pack_offset``
CONSOLE = b"O"  #: console output
SKIPPED = b"K"  #: offset the console goes on at, in the same way
NOTICE = b"N"  #: lines for the person at the terminal
PAINT = b"T"  #: bytes for the terminal that are no part of the console: its last screen, painted anew
ROLE = b"W"  #: what the person may do from now on: writer, sharer, observer or owner

# client → supervisor
PID = b"p"  #: decimal pid of the forked stub
INPUT = b"I"  #: typed bytes
RESIZE = b"R"  #: "rows cols"
INPUT_EOF = b"Z"  #: stdin has ended
DETACH = b"D"  #: leave, the guest goes on
ASK = b"Q"  #: the key behind the escape key
SIGNAL = b"S"  #: decimal signal number sent to the client of `run`

#: environment variables that the supervisor is told
ENVIRONMENT = (b"RUNPHI_CONFIG", b"XDG_RUNTIME_DIR", b"NOTIFY_SOCKET", b"LISTEN_FDS", b"TERM")


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Frame ``payload`` (bytes)."""
    return kind + len(payload).to_bytes(4, "big") + payload


class Decoder:
    """Cuts what comes over a connection, in pieces of any size, into frames.

    :param most: longest frame that is believed, its head included; 0: any.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    @property
    def held(self) -> int:
        """Bytes that were not taken yet."""
        return len(self._data) - self._at

    @property
    def complete(self) -> bool:
        """Whether there is a frame to take; ValueError when it is too long."""
        return self._end(self._at + 5) >= 0

    def take(self) -> "tuple[bytes, bytes] | None":
        """Return type and payload of the next frame, None when it is not complete; ValueError when it is too long."""
        start = self._at + 5
        end = self._end(start)
        if end < 0:
            return None
        kind, payload = bytes(self._data[self._at : self._at + 1]), bytes(self._data[start:end])
        self._at = end
        return kind, payload

    def _end(self, start: int) -> int:
        """Return the end of the frame whose payload begins at ``start``, -1 when it has not come yet."""
        if len(self._data) < start:
            return -1
        end = start + int.from_bytes(self._data[start - 4 : start], "big")
        if 0 < self._most < end - self._at:
            raise ValueError("a frame is too long")
        return end if len(self._data) >= end else -1


def pack(fields: list[bytes]) -> bytes:
    """Put fields of any bytes into one payload."""
    return b"".join([len(field).to_bytes(4, "big") + field for field in fields])


def unpack(data: bytes) -> list[bytes]:
    """Take the fields out of a payload; ValueError where it does not end with the last of them."""
    fields = []
    at = 0
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "big")
        if start > len(data) or at > len(data):
            raise ValueError("a field is cut off")
        fields.append(data[start:at])
    return fields


def request(cwd: bytes, env: list[bytes], argv: list[bytes]) -> bytes:
    """Encode a request."""
    body = pack([cwd, pack(env), pack(argv)])
    return MAGIC + len(body).to_bytes(4, "big") + body
