"""The process in which `cnnc tune` measures on this machine: `python -m cnnc_tvm.rpc_server`, a server of TVM's RPC.

The first line of standard input is the key that clients must show; the answer is a line with the port. Each client gets
a process, which may crash or be killed when its time is up. All end when standard input does.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from cnnc_tvm.ffi import import_compiler, threads

HOST: Final = "127.0.0.1"
PORTS: Final = 49152, 65535


def main() -> None:
    """Serve until there is no more input."""
    # Not by `sys.stdin`: clients' processes are forked while this one waits, and would wait for its lock.
    key = os.read(0, 1000).decode().strip()
    threads()
    import_compiler()
    from tvm.rpc.server import PopenRPCServerState

    server = PopenRPCServerState(HOST, *PORTS, key=key, silent=True)
    print(server.port, flush=True)
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)  # with the processes of clients


if __name__ == "__main__":
    main()
