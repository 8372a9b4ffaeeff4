"""Linear algebra for calibration, where the build found Eigen and OpenBLAS. Internal."""

import numpy as np
from numpy.typing import NDArray

def factor(products: NDArray[np.float32], *, damping: float) -> NDArray[np.float32]: ...
