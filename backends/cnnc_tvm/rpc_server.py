"""The process in which `cnnc tune` measures on this machine: `python -m cnnc_tvm.rpc_server`, a server of TVM's RPC.

The first line of standard input is the key that clients must show; the answer is a line with the port. Each client gets
a process, which may crash or be killed when its time is up. All end when standard input does.
"""

from __future__ import annotations

import os
import signal
from itertools import cycle
from typing import Final

from cnnc_tvm.ffi import import_compiler, threads

HOST: Final = "127.0.0.1"
PORTS: Final = 49152, 65535
SPREAD: Final = "cnnc.spread"
"""The name of `spread` for clients."""
_CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""Those that the process may run on, before threads are bound."""


def spread() -> None:
    """Bind each thread of this process to a core of its own. A client's process sleeps between its runs and may wake up
    on the core where another of its threads waits, and stay there for longer than kernels take: by twice as long."""
    for core, thread in zip(cycle(_CORES), sorted(map(int, os.listdir("/proc/self/task"))), strict=False):
        os.sched_setaffinity(thread, {core})


def main() -> None:
    """Serve until there is no more input."""
    # Not by `sys.stdin`: clients' processes are forked while this one waits, and would wait for its lock.
    key = os.read(0, 1000).decode().strip()
    threads()
    import_compiler()
    from tvm.rpc.server import PopenRPCServerState
    from tvm_ffi import register_global_func

    register_global_func(SPREAD, spread)

    server = PopenRPCServerState(HOST, *PORTS, key=key, silent=True)
    print(server.port, flush=True)
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)  # with the processes of clients


if __name__ == "__main__":
    main()
