"""A kernel matrix on a CUDA device, as an operator for ``distill.krr``'s block Lanczos.

    K = DeviceKernel(rbf(gamma), X, device="cuda")
    basis = krr.lanczos(K, y, alphas, lams, steps)
    basis.risk_map(DeviceKernel(rbf(gamma), X, X_new, device="cuda"), target, alphas, lams, steps)

Only the products run on the device; the basis stays in main memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from distill.environment import available_memory
from distill.kernel.arrays import FloatArray
from distill.kernel.tiles import KernelTiles


class DeviceKernel(KernelTiles):
    """``krr.KernelTiles`` in float64 on a torch device, such as "cuda" or "cpu".

    ``kernel`` maps tensors (a, p) and (b, p) on the device to their kernel matrix (a, b). Tiles that fit into
    ``memory`` bytes of the device (default: half of what is free) are kept. Raises ValueError and NotFiniteError.
    """

    def __init__(
        self,
        kernel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        X: ArrayLike,
        X_new: ArrayLike | None = None,
        *,
        device: torch.device | str,
        tile: int = 8192,
        memory: float | None = None,
    ):
        self.device = torch.device(device)
        if self.device.type == "mps":
            raise ValueError("an MPS device has no float64; take the CPU")
        if memory is None:
            cuda = self.device.type == "cuda"
            free = torch.cuda.mem_get_info(self.device)[0] if cuda else available_memory() or 0
            memory = free / 2
        super().__init__(kernel, X, X_new, tile=tile, memory=memory)
        self.columns = self._to_device(self.columns)
        self.rows = self.columns if self.symmetric else self._to_device(self.rows)

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(array, np.float64), device=self.device)

    def _matmat(self, block: NDArray[np.floating]) -> FloatArray:
        b = self._to_device(block)
        out = torch.zeros(self.shape[0], b.shape[1], dtype=torch.float64, device=self.device)
        for rows, columns, tile in self._tiles():
            out[rows] += tile @ b[columns]
            if self.symmetric and rows != columns:
                out[columns] += tile.T @ b[rows]
        return out.cpu().numpy()

    def _compute(self, rows: slice, columns: slice) -> torch.Tensor:
        return self.kernel(self.rows[rows], self.columns[columns])


def rbf(gamma: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The function (A, B) -> exp(-gamma ‖a_i - b_j‖²) of tensors, as ``krr.rbf`` of arrays."""

    def kernel(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        squares = (A * A).sum(1)[:, None] + (B * B).sum(1)
        return squares.addmm_(A, B.T, alpha=-2).clamp_(min=0).mul_(-gamma).exp_()

    return kernel
