"""A worker as seen by the process that measures: started, asked with a time limit, and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from cnnc.diagnostics import CnncError, error

COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "cnnc.bench.worker")
"""-P: a file `torch.py` of the folder that the user is in is not the library."""
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")
"""What libraries read when they are loaded to know how many threads to use."""


class Worker:
    """A system in a process of its own, with `threads` threads. It must answer each request within `limit` seconds.

    To be used in a `with` statement, at the end of which it is closed.
    """

    def __init__(self, system: str, threads: int, limit: float, command: Sequence[str] | None = None) -> None:
        self.system, self._limit = system, limit
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        self._process = subprocess.Popen(
            command or COMMAND, env=os.environ | dict.fromkeys(THREADS, str(threads)), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._pending = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process, with all that it started, unless that was done before."""
        if self._errors.closed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with suppress(BrokenPipeError):  # a request that was never read
                stream.close()

    def ask(self, **request: object) -> dict[str, Any]:
        """The answer to a request of `cnnc.bench.worker`.

        CnncError E0608 if the worker has died, does not answer in time or says that it failed; the code that it says
        where it has one.
        """
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            answer = json.loads(self._line())
        except BrokenPipeError:
            raise self._died() from None
        except ValueError:
            raise error("E0608", f"`{self.system}` gave an answer that is no JSON") from None
        if "error" in answer:
            raise error(answer["code"] or "E0608", f"`{self.system}` failed: {answer['error']}")
        return dict(answer)

    def _line(self) -> bytes:
        """The next line of the worker."""
        stdout = self._process.stdout
        assert stdout is not None
        end = time.monotonic() + self._limit
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise error("E0608", f"`{self.system}` did not answer within {self._limit:g} s")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise self._died()
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _died(self) -> CnncError:
        """What is known of the end of the process: its status and the last it said."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)  # its end of the pipe may close a moment before it ends
        status = self._process.returncode
        how = f"was killed by {signal.Signals(-status).name}" if status and status < 0 else "stopped"
        self._errors.seek(0)
        said = self._errors.read()[-4096:].decode(errors="replace").strip()
        return error("E0608", f"`{self.system}` {how}" + (f": {said.splitlines()[-1]}" if said else ""))
