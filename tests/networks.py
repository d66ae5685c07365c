"""Whole networks for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cnnc import ops
from numerics import Array

MODELS = Path(__file__).parents[1] / "models"


class Unruled(ops.Relu):
    """An op that no target has a rule for."""

    name = "unruled"


def assert_alive(output: Array) -> None:
    """What comes out depends on what goes in: the samples of a batch differ by over a hundredth of the largest value.

    Deep networks with random weights can blow up or die out until it does not, and a comparison shows nothing.
    """
    assert output.shape[0] > 1
    assert np.ptp(output, axis=0).max() > 0.01 * np.abs(output).max(), "all samples give the same output"
