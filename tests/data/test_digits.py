"""digits.py against scikit-learn's own arrays."""

from distill.config import DataConfig
from distill.data.digits import read_digits


def test_digits_scale_ink_to_bytes():
    from sklearn.datasets import load_digits

    levels = load_digits().images.astype(int)
    images = read_digits(DataConfig("digits")).train_images[:, 0]
    for level, byte in ((0, 0), (1, 16), (8, 128), (15, 239), (16, 255)):
        assert set(images[levels == level]) == {byte}
