# SPDX-License-Identifier: Apache-2.0
"""The words that thin client and supervisor exchange over the supervisor's socket.

Every engine call pays for importing this module in the client, so it holds constants and two tiny functions and
imports nothing. A request is one message: ``MAGIC``, a 32-bit big-endian length and NUL-terminated fields
(working directory, number of environment entries, the entries, argv), with descriptors 0, 1 and 2 attached.
All that follows in both directions are frames: one type byte, a 32-bit big-endian length, the payload.
"""

MAGIC = b"RPH1"
SOCKET = "supervisor.sock"

# supervisor → client
OUT = b"o"  #: text for stdout
ERR = b"e"  #: text for stderr
EXIT = b"x"  #: decimal exit status; ends the call
RUNC = b"r"  #: NUL-separated path and argv: become the ordinary runtime
SPAWN = b"s"  #: NUL-separated working directory and argv of the init stub; its descriptors 0.. are attached
GO = b"g"  #: the stub may exec
ATTACH = b"a"  #: a console follows; payload: flags byte (see client_attach.py), escape key if any, detach keys
CONSOLE_AT = b"A"  #: 64-bit offset of the first console byte
CONSOLE = b"O"  #: console output
SKIPPED = b"K"  #: 64-bit offset the console goes on at
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


def request(cwd: bytes, env: list[bytes], argv: list[bytes]) -> bytes:
    """Encode a request."""
    body = b"\0".join([cwd, b"%d" % len(env), *env, *argv]) + b"\0"
    return MAGIC + len(body).to_bytes(4, "big") + body
