"""The command line. `main` is the entry point of the `cnnc` script.

The modules here import only click and each other at the top; what a command needs it imports when it runs, so that
`cnnc check` starts without NumPy and the libraries of the targets.
"""

from __future__ import annotations

from cnnc.cli.app import App
from cnnc.cli.bench import bench
from cnnc.cli.check import check
from cnnc.cli.compile import compile_
from cnnc.cli.completion import completion
from cnnc.cli.doctor import doctor, targets
from cnnc.cli.explain import explain
from cnnc.cli.ir import ir
from cnnc.cli.models import models
from cnnc.cli.passes import passes
from cnnc.cli.profile import profile
from cnnc.cli.run import run
from cnnc.cli.summary import summary
from cnnc.cli.test import test
from cnnc.cli.tune import tune
from cnnc.cli.verify import verify

main = App(
    commands=[
        check, test, summary, ir, compile_, run, verify, bench, tune, profile, models, targets, passes, doctor,
        explain, completion,
    ]
)  # fmt: skip

__all__ = ["main"]
