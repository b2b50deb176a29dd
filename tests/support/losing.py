"""A proxy to a log server that loses answers."""

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def losing_answers(port: int) -> Iterator[str]:
    """Yield the address of a proxy that hangs up once it has passed on an XADD."""

    def serve(client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            while asked := client.recv(1 << 20):
                server.sendall(asked)
                answer = server.recv(1 << 20)
                if b"XADD" in asked:
                    return
                client.sendall(answer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
