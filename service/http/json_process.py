"""JSON bodies to the one byte format, large ones in processes of their own.

The parser makes an object of every number and keeps the interpreter's lock meanwhile, some 40 µs
for 784 numbers: in this process learning and all other requests would stand still. What comes back
are the bytes that the log takes. ``python -m service.json_process`` is such a process: it serves
one socket, its standard input, and ends with it, however its parent ends.
"""

import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from struct import Struct

import orjson

from service.process import keep_freed_memory
from streams.batch import Batch, InvalidBatchError, TooManyError
from streams.json_batch import from_json, from_ndjson

SMALL = 64 << 10
"""Bytes that are parsed here, in about 0.2 ms; more go to another process."""
NICENESS = 5
"""As that of learning: those that answer requests go before."""

ASKED = Struct("<?IQ")
"""Before a body: whether it is NDJSON, the width of an example, and the body's length."""
ANSWERED = Struct("<BQ")
"""Before an answer: which of KINDS it is, and its length."""
KINDS = ("batch", "invalid", "too many")


class JSONProcessError(RuntimeError):
    """The process ended over a body."""


class JSONProcess:
    """A process that reads one body at a time."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service.http.json_process"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the service, which answers first
            )

    def translate(self, body: bytes, is_ndjson: bool, width: int) -> bytes:
        """Return the safetensors file of a batch.

        Raises:
            InvalidBatchError: it is none.
            JSONProcessError: the process has ended; it cannot be used again.
        """
        try:
            self._socket.sendall(ASKED.pack(is_ndjson, width, len(body)))
            self._socket.sendall(body)
            kind, length = ANSWERED.unpack(_receive(self._socket, ANSWERED.size))
            answer = _receive(self._socket, length)
        except OSError as error:
            self.close()
            raise JSONProcessError(
                f"the process that read the body ended with {self._process.returncode}"
            ) from error
        if kind == KINDS.index("batch"):
            return bytes(answer)
        is_too_many = kind == KINDS.index("too many")
        raise (TooManyError if is_too_many else InvalidBatchError)(**orjson.loads(answer))

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


_idle: list[JSONProcess] = []


def translate(body: bytes, is_ndjson: bool, width: int) -> bytes:
    """Return the safetensors file of a batch that is written as JSON; for several threads.

    Args:
        body: JSON or NDJSON.
        is_ndjson: which.
        width: of an example.

    Raises:
        InvalidBatchError: it is none.
        JSONProcessError: the process that read it ended over it.
    """
    if len(body) <= SMALL:
        return _reader(is_ndjson)(body, width).to_bytes()
    process = _take()
    try:
        answer = process.translate(body, is_ndjson, width)
    except InvalidBatchError:
        _idle.append(process)
        raise
    _idle.append(process)
    return answer


def _take() -> JSONProcess:
    try:
        while not (process := _idle.pop()).is_alive():
            process.close()
    except IndexError:
        return JSONProcess()
    return process


@atexit.register
def _end() -> None:
    for process in _idle:
        process.close()


def _reader(is_ndjson: bool) -> Callable[[bytes, int], Batch]:
    return from_ndjson if is_ndjson else from_json


def _receive(source: socket.socket, length: int) -> bytearray:
    """Read so many bytes, in one call of the system if it can be.

    Raises:
        ConnectionError: the other end was closed before.
    """
    found = bytearray(length)
    view = memoryview(found)
    while view:
        if not (n := source.recv_into(view, len(view), socket.MSG_WAITALL)):
            raise ConnectionError("the other end is closed")
        view = view[n:]
    return found


def _serve(parent: socket.socket) -> None:
    """Answer until the parent is gone."""
    while True:
        try:
            is_ndjson, width, length = ASKED.unpack(_receive(parent, ASKED.size))
        except ConnectionError:
            return
        body = bytes(_receive(parent, length))
        try:
            answer, kind = _reader(is_ndjson)(body, width).to_bytes(), "batch"
        except InvalidBatchError as error:
            found = {"message": str(error), "field": error.field, "index": error.index}
            answer = orjson.dumps(found)
            kind = "too many" if isinstance(error, TooManyError) else "invalid"
        parent.sendall(ANSWERED.pack(KINDS.index(kind), len(answer)))
        parent.sendall(answer)


if __name__ == "__main__":
    os.nice(NICENESS)
    keep_freed_memory()
    _serve(socket.socket(fileno=os.dup(0)))
