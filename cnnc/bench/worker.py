"""The process that a system has for itself: `python -m cnnc.bench.worker`.

Requests come in as JSON objects, a line each, and every one is answered by a line.

    {"do": "load", "system": NAME, "model": PATH, "inputs": PATH, "dtype": T, "threads": N}
        -> {"version": ..., "seconds": ...}
    {"do": "run", "outputs": PATH}   run once, write the outputs as safetensors   -> {}
    {"do": "time", "seconds": S}     run for so long, at least once    -> {"seconds": median, "peak_bytes": ...}

`peak_bytes` is the most memory that the process has used so far, null where the system does not tell it. Of a request
that fails the answer is {"error": message, "code": code or null}. The process ends when its input does.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cnnc.bench.systems import SYSTEMS
from cnnc.diagnostics import CnncError
from cnnc.ir.types import DType

if TYPE_CHECKING:
    from cnnc.bench.systems import Run

STATUS: Final = Path("/proc/self/status")


def main() -> None:
    """Answer requests until there are no more."""
    # Libraries that print must not do so among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session = Session()
    for line in sys.stdin:
        print(json.dumps(session.answer(json.loads(line))), file=answers, flush=True)


class Session:
    """A system with the model it has loaded."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._requests: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load, "run": self._write, "time": self._time,
        }  # fmt: skip

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; never raises."""
        do = request.pop("do")
        try:
            return self._requests[do](**request)
        except CnncError as e:
            return {"error": e.diagnostics[0].message, "code": e.diagnostics[0].code}
        except Exception as e:
            first = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
            return {"error": f"{type(e).__name__}: {first[:300]}", "code": None}

    def _load(self, system: str, model: str, inputs: str, dtype: str, threads: int) -> dict[str, Any]:
        from cnnc import weights

        arrays, chosen = weights.from_bytes(Path(inputs).read_bytes(), inputs), SYSTEMS[system]
        start = time.perf_counter()
        self._run = chosen.load(Path(model), arrays, DType(dtype), threads)
        return {"seconds": time.perf_counter() - start, "version": chosen.version}

    def _write(self, outputs: str) -> dict[str, Any]:
        from cnnc import weights

        weights.save(Path(outputs), self._loaded()())
        return {}

    def _time(self, seconds: float) -> dict[str, Any]:
        run = self._loaded()
        run()  # its threads have slept since the last turn, and the caches hold the data of others
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times), "peak_bytes": peak_bytes()}

    def _loaded(self) -> Run:
        assert self._run is not None, "nothing is loaded"
        return self._run


def peak_bytes() -> int | None:
    """The largest resident set of this process. getrusage would count that of its parent, before it was another."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main()
