"""Where `cnnc tune` runs kernels: a process on this machine, or the machines that a tracker of TVM's RPC knows.

Kernels run in processes of their own there, for a limited time: what crashes or hangs ends its session alone.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, Final, Protocol

from tvm import rpc

from cnnc.diagnostics import error
from cnnc.tuning import Farm
from cnnc_tvm.rpc_server import HOST

_COMMAND: Final = (sys.executable, "-P", "-m", "cnnc_tvm.rpc_server")
_PATIENCE: Final = 30.0
"""Seconds that a server may take to start, and a tracker to have a free one."""


class Place(Protocol):
    """Where kernels run."""

    count: int
    """How many sessions there can be at a time."""

    def session(self, limit: float) -> Any:
        """An RPC session that ends after so many seconds. CnncError E0610 where there is none."""

    def failed(self) -> None:
        """A session ended before it was closed: it crashed, or its time was up."""

    def close(self) -> None:
        """End what was started here."""
        ...


class Here:
    """A server on this machine, started when it is first needed."""

    count = 1

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._key, self._port = secrets.token_hex(16), 0

    def session(self, limit: float) -> Any:
        if self._process is None:
            self._start()
        return rpc.connect(HOST, self._port, self._key, session_timeout=limit)

    def _start(self) -> None:
        # In a session of its own: Ctrl-C is for this process alone, and all its processes can be killed.
        process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{self._key}\n")
            process.stdin.flush()
        port = process.stdout.readline().strip()
        if not port.isdecimal():
            self.close()
            raise error("E0610", "the process that is to run kernels did not start")
        self._port = int(port)

    def failed(self) -> None:
        self.close()  # TVM's server does not outlive the crash of a client's process

    def close(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        self._process = None


class Machines:
    """Those that a tracker knows by a key. With `like` they must be such CPUs, as LLVM names them."""

    def __init__(self, farm: Farm, like: str | None) -> None:
        self._farm, self._like = farm, like
        self.count, _ = self._servers()
        if not self.count:
            hint = f"on each: `python -m tvm.exec.rpc_server --tracker {farm.host}:{farm.port} --key {farm.key}`"
            raise error("E0610", f"the tracker at {self} knows no machine by the key `{farm.key}`", help=hint)

    def __str__(self) -> str:
        return f"{self._farm.host}:{self._farm.port}"

    def session(self, limit: float) -> Any:
        end = time.monotonic() + limit + _PATIENCE  # others may be using them
        while not self._servers()[1]:
            if time.monotonic() > end:
                raise error("E0610", f"no machine with the key `{self._farm.key}` is free at {self}")
            time.sleep(0.1)
        session = self._tracker().request(self._farm.key, session_timeout=limit)
        if self._like and (cpu := session.get_function("target.llvm_get_system_cpu")()) != self._like:
            message = f"a machine with the key `{self._farm.key}` is a `{cpu}`, and this one a `{self._like}`"
            raise error("E0610", message, help=f"`-X mcpu={cpu}` tunes for such machines")
        return session

    def failed(self) -> None:
        """A server that a crash has ended is not known to the tracker any more."""

    def close(self) -> None:
        """Nothing was started."""

    def _tracker(self) -> Any:
        try:  # TVM would try again for a minute
            socket.create_connection((self._farm.host, self._farm.port), timeout=5).close()
            return rpc.connect_tracker(self._farm.host, self._farm.port)
        except (OSError, RuntimeError) as e:
            raise error("E0610", f"there is no tracker at {self}: {_reason(e)}") from None

    def _servers(self) -> tuple[int, int]:
        """How many machines have the key, and how many of them are free."""
        found = self._tracker().summary()
        key = self._farm.key
        known = sum(server["key"] == f"server:{key}" for server in found["server_info"])
        return known, found["queue_info"].get(key, {"free": 0})["free"]


def _reason(e: Exception) -> str:
    return ((isinstance(e, OSError) and e.strerror) or str(e)).lower()
