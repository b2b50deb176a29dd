"""Processes that decode large JSON bodies.

The parser makes an object of every number and holds the interpreter's lock meanwhile, some 40 µs
for 784 numbers: in the service's own process, learning and all other requests would stand still.
``python -m service.http.json_process`` is such a process: it serves one socket, its standard
input, and ends when that is closed, however its parent ends.
"""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Sized
from struct import Struct
from typing import Any, TypeVar

import orjson

from service.http.codecs.codec import Codec
from service.http.codecs.rows import LEARN_ROWS, PREDICT_ROWS
from service.http.codecs.table import LEARN, PREDICT
from service.process import keep_freed_memory
from streams.batch import InvalidBatchError, TooManyError

NICENESS = 5
"""The same as the trainer's: the threads that answer requests go first."""

ASKED = Struct("<BII?IQ")
"""Sent before a body: the index of its codec, the model's features and classes, whether it expects
bytes, the lengths of the options and of the body."""
ANSWERED = Struct("<IQ")
"""Sent before an answer: the number of examples, 0 for a refusal, and its length."""
CODECS: list[Codec[Any]] = [
    codec for codecs in (LEARN, PREDICT, LEARN_ROWS, PREDICT_ROWS) for codec in codecs.values()
]

T = TypeVar("T", bound=Sized)


class JSONProcessError(RuntimeError):
    """The process ended while it decoded a body."""


class DecoderError(RuntimeError):
    """A decoder raised what it should not; the message is the traceback."""


class JSONProcess:
    """A process that decodes one body at a time."""

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

    def decode(
        self,
        codec: Codec[T],
        body: bytes,
        features: int,
        classes: int,
        expects_bytes: bool = False,
        options: bytes = b"",
    ) -> T:
        """Return what a body holds; arguments as for `service.http.codecs.codec.Decode`.

        The options are for `pack` of its wire.

        Raises:
            DecoderError: the decoder has a defect.
            InvalidBatchError: the examples cannot be learned or predicted.
            JSONProcessError: the process has ended; it cannot be used again.
        """
        assert codec.wire is not None, "the codec decodes in this process only"
        try:
            number, length = CODECS.index(codec), len(body)
            asked = ASKED.pack(number, features, classes, expects_bytes, len(options), length)
            self._socket.sendall(asked + options)
            self._socket.sendall(body)
            count, length = ANSWERED.unpack(_receive(self._socket, ANSWERED.size))
            answer = _receive(self._socket, length)
        except OSError as error:
            self.close()
            raise JSONProcessError(
                f"the process that decoded the body ended with {self._process.returncode}; send "
                "the body again"
            ) from error
        if count:
            return codec.wire.unpack(count, answer)
        refusal = orjson.loads(answer)
        if defect := refusal.get("defect"):
            raise DecoderError(defect)
        raise (TooManyError if refusal.pop("is_too_many") else InvalidBatchError)(**refusal)

    def is_alive(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class JSONProcesses:
    """A pool of processes, one for each thread that decodes; they start on demand."""

    def __init__(self) -> None:
        self.idle: list[JSONProcess] = []

    def decode(
        self,
        codec: Codec[T],
        body: bytes,
        features: int,
        classes: int,
        expects_bytes: bool = False,
        options: bytes = b"",
    ) -> T:
        """Return what a body holds; may be called in any thread.

        Arguments as for `JSONProcess.decode`.

        Raises:
            DecoderError: the decoder has a defect.
            InvalidBatchError: the examples cannot be learned or predicted.
            JSONProcessError: the process ended while it decoded them.
        """
        process = self._take()
        try:
            return process.decode(codec, body, features, classes, expects_bytes, options)
        finally:
            if process.is_alive():
                self.idle.append(process)

    def _take(self) -> JSONProcess:
        try:
            while not (process := self.idle.pop()).is_alive():
                process.close()
        except IndexError:
            return JSONProcess()
        return process

    def close(self) -> None:
        """End the processes, which must be idle."""
        while self.idle:
            self.idle.pop().close()


def _receive(source: socket.socket, length: int) -> bytearray:
    """Read so many bytes, in one call of the system if possible.

    Raises:
        ConnectionError: the other end was closed before.
    """
    received = bytearray(length)
    view = memoryview(received)
    while view:
        if not (n := source.recv_into(view, len(view), socket.MSG_WAITALL)):
            raise ConnectionError("the other end is closed")
        view = view[n:]
    return received


def _serve(parent: socket.socket) -> None:
    """Decode bodies until the parent closes its end."""
    while True:
        try:
            number, *model, more, length = ASKED.unpack(_receive(parent, ASKED.size))
            options = bytes(_receive(parent, more))
        except ConnectionError:
            return
        body, codec = bytes(_receive(parent, length)), CODECS[number]
        assert codec.wire is not None
        try:
            count, answer = codec.wire.pack(codec.decode(body, *model), options)
        except InvalidBatchError as error:
            refusal = {"message": str(error), "field": error.field, "index": error.index}
            refusal["is_too_many"] = isinstance(error, TooManyError)
            count, answer = 0, orjson.dumps(refusal)
        except MemoryError:
            raise
        except Exception:
            count, answer = 0, orjson.dumps({"defect": traceback.format_exc()})
        parent.sendall(ANSWERED.pack(count, len(answer)))
        parent.sendall(answer)


if __name__ == "__main__":
    os.nice(NICENESS)
    keep_freed_memory()
    _serve(socket.socket(fileno=os.dup(0)))
