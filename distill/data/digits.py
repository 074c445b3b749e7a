"""scikit-learn's handwritten digits, which need no download."""

import numpy as np

from distill.config import DataConfig
from distill.data.source import Source


def read_digits(config: DataConfig, progress: bool = False) -> Source:
    """The 1,797 digits as images (1797, 1, 8, 8), without a test split: each seed draws its own."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # ink from 0 to 16
    return Source(
        name="digits",
        train_images=images[:, None],
        train_labels=digits.target.astype(np.int64),
        test_images=None,
        test_labels=None,
        classes=tuple(str(digit) for digit in range(10)),
        flip=False,
    )
