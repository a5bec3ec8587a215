"""The clients of the federated comparison: MNIST's shape, made of scikit-learn's hand-written digits.

FLUTE's table has MNIST, logistic regression, 1,000 clients, 10 of them a round, 100 rounds, on a CPU. MNIST itself is
not at hand without a download, so the 1,797 digits of 8 x 8 pixels that come with scikit-learn are enlarged to 28 x 28
(each pixel thrice, a margin of two): 784 numbers an image, as there. Every client has 60 images, drawn with
replacement (60,000 in all, as many as MNIST's training set); it passes over them once a round, ten at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLIENTS, PER_ROUND = 1000, 10
IMAGES, BATCH = 60, 10
PIXELS, CLASSES = 28 * 28, 10
LR = 0.03

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def clients() -> tuple[Floats, Integers]:
    """Return every client's images, [CLIENTS, IMAGES, PIXELS] from 0 to 1, and labels, [CLIENTS, IMAGES]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    enlarged = np.pad(np.kron(digits.images / 16.0, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    chosen = np.random.default_rng(0).integers(0, len(enlarged), (CLIENTS, IMAGES))
    images = enlarged.reshape(len(enlarged), PIXELS).astype(np.float32)[chosen]
    return images, digits.target.astype(np.int64)[chosen]


def players(round_number: int) -> Integers:
    """Return the clients that play in a round (from 1), PER_ROUND different ones."""
    return np.random.default_rng((1, round_number)).choice(CLIENTS, PER_ROUND, replace=False)


def write(path: Path) -> Path:
    """Write all clients where another interpreter, without scikit-learn, can read them."""
    images, labels = clients()
    np.save(path / "images.npy", images)
    np.save(path / "labels.npy", labels)
    return path
