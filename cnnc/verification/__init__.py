"""Verification: does every target, and every pass of the optimiser, compute what the network says?

Each program is compared with the float64 evaluation of the graph as it was written, on the same weights and inputs
(`Verification.check`). Where one differs by more than rounding explains, the fault is traced to a pass or a target, and
to the first node that is wrong (`Verification.locate`). `Fault.write` makes a folder that replays it.

    verification = Verification(random_case(cnnc.load("net.cnn")))
    for setting in settings(["numpy", "onnx"]):
        outcome = verification.check(setting)
        if not outcome.ok:
            print(verification.locate(outcome).message)
"""

from cnnc.verification.agreement import NETWORK_TOLERANCE, Agreement, Expected, Place
from cnnc.verification.case import Case, random_case, random_inputs, random_weights, reference
from cnnc.verification.fault import Fault, Reproducer
from cnnc.verification.network_bound import network_bounds
from cnnc.verification.node_bound import bound_on, node_bound
from cnnc.verification.setting import Setting, settings
from cnnc.verification.verify import Outcome, Verification

__all__ = [
    "NETWORK_TOLERANCE", "Agreement", "Case", "Expected", "Fault", "Outcome", "Place", "Reproducer", "Setting",
    "Verification", "bound_on", "network_bounds", "node_bound", "random_case", "random_inputs", "random_weights",
    "reference", "settings",
]  # fmt: skip
