"""A port for the processes of a test: fixed ones meet where several tests run at a time."""

from __future__ import annotations

import socket


def free_port() -> str:
    """One that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
