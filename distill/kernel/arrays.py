"""Float64 arrays: their type and their precision."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
