# SPDX-License-Identifier: Apache-2.0
"""A client for the Kubernetes Container Runtime Interface: what kubelet says to an engine, said by tests.

``cri.proto`` holds the calls. Requests and answers are dictionaries in its words; a field that an answer leaves out
has its default there.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from websockets.sync.client import ClientConnection

PROTO: Final = Path(__file__).with_name("cri.proto")
SERVICES: Final = ("runtime.v1.RuntimeService", "runtime.v1.ImageService")
#: longest time one call may take; a stop waits for its own time beside it
CALL: Final = 120.0
#: pause before a command is typed once more
AGAIN: Final = 5.0
#: the channels of an attach or exec stream
STDIN, STDOUT, STDERR, FAULT, RESIZE = range(5)


class CriError(Exception):
    """Raised when the engine refuses a call."""


def _services() -> Any:
    """Compiles ``cri.proto`` into descriptors."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "cri.bin")
        if protoc.main(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={out}", str(PROTO)]):
            raise CriError(f"cannot compile {PROTO}")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return [pool.FindServiceByName(name) for name in SERVICES]


class Cri:
    """A connection to an engine's CRI socket."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{path}")
        self._calls: dict[str, Any] = {}
        self._requests: dict[str, Any] = {}
        for service in _services():
            for method in service.methods:
                asked, answered = (message_factory.GetMessageClass(x) for x in (method.input_type, method.output_type))
                self._requests[method.name] = asked
                self._calls[method.name] = self._channel.unary_unary(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=asked.SerializeToString,
                    response_deserializer=answered.FromString,
                )

    def call(self, method: str, /, **request: Any) -> dict[str, Any]:
        """Makes one call; :raises CriError: the engine's own words."""
        message = json_format.ParseDict(request, self._requests[method]())
        try:
            answer = self._calls[method](message, timeout=CALL)
        except grpc.RpcError as exc:
            raise CriError(f"{method}: {exc.code().name}: {exc.details()}") from exc
        found: dict[str, Any] = json_format.MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return found

    def close(self) -> None:
        self._channel.close()


@contextlib.contextmanager
def stream(url: str, sock: socket.socket, answer: float) -> Iterator[Stream]:
    """An attach or exec stream for as long as the context lasts.

    :param sock: connected to the server that the URL names.
    :param answer: longest wait for a message.
    """
    protocols = [Subprotocol("v4.channel.k8s.io")]
    where = url.replace("http://", "ws://", 1)
    # without a bound on what was not read yet: a stream that a test does not read must not hold up its own end
    with connect(where, sock=sock, subprotocols=protocols, compression=None, max_queue=None) as web:
        yield Stream(web, answer)


class Stream:
    """What ``kubectl attach`` and ``kubectl exec`` hold: a websocket with a channel number in front of each message."""

    def __init__(self, web: ClientConnection, answer: float) -> None:
        self._web, self._answer = web, answer
        self.seen: dict[int, bytes] = {STDOUT: b"", STDERR: b"", FAULT: b""}

    def send(self, data: bytes) -> None:
        self._web.send(bytes([STDIN]) + data)

    def resize(self, rows: int, columns: int) -> None:
        self._web.send(bytes([RESIZE]) + json.dumps({"Width": columns, "Height": rows}).encode())

    def _read(self, deadline: float) -> bool:
        """Takes one message; False: the stream has ended."""
        try:
            message = self._web.recv(max(0.0, deadline - time.monotonic()))
        except ConnectionClosed:
            return False
        assert isinstance(message, bytes)
        self.seen[message[0]] += message[1:]
        return True

    def _find(self, wanted: bytes, deadline: float) -> None:
        """Reads until the bytes were seen; what came before and they are taken away."""
        while wanted not in self.seen[STDOUT]:
            assert self._read(deadline), f"ended without {wanted!r}: {self.seen}"
        self.seen[STDOUT] = self.seen[STDOUT].partition(wanted)[2]

    def expect(self, wanted: bytes) -> None:
        """Waits for these bytes on stdout."""
        try:
            self._find(wanted, time.monotonic() + self._answer)
        except TimeoutError:
            raise AssertionError(f"no {wanted!r} in time: {self.seen}") from None

    def ask(self, command: bytes, wanted: bytes) -> None:
        """Types a command until its answer comes: containerd says yes to a stream a moment before it is one."""
        end = time.monotonic() + self._answer
        while True:
            self.send(command)
            try:
                return self._find(wanted, min(end, time.monotonic() + AGAIN))
            except TimeoutError:
                assert time.monotonic() < end, f"no {wanted!r} in time: {self.seen}"

    def finish(self) -> dict[str, Any]:
        """Reads to the end; returns the status that the server put there, if any."""
        end = time.monotonic() + self._answer
        while self._read(end):
            pass
        fault = self.seen[FAULT]
        status: dict[str, Any] = json.loads(fault) if fault else {}
        return status
