"""scikit-learn's 1,797 handwritten digits: 8x8 pixels, grey, 0..16. They come with scikit-learn: no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array: TypeAlias = np.ndarray[Any, Any]

MODEL = Path(__file__).parent / "digits.cnn"
WEIGHTS = Path(__file__).parent / "digits.safetensors"


class Digits(NamedTuple):
    """Images, float32 [n, 1, 8, 8], and what they show, int64 [n]."""

    images: Array
    labels: Array


def digits() -> tuple[Digits, Digits]:
    """1,347 digits to learn from and 450 held out, the same at each call, each class in its share of both."""
    data = load_digits()
    images = data.images[:, np.newaxis].astype(np.float32)
    learn, held_out, learn_labels, held_out_labels = train_test_split(
        images, data.target, test_size=0.25, stratify=data.target, random_state=0
    )
    return Digits(learn, learn_labels), Digits(held_out, held_out_labels)
