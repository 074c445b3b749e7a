"""The files that keep a basis of block Lanczos between runs."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import DataError
from distill.files import append, open_file, open_locked, write_atomically
from distill.kernel.arrays import FloatArray


class BasisFiles:
    """A folder with a growing basis: ``basis.f64``, its vectors one after the other, and ``state.npz``, the rest.

    New vectors are on the disk before the state that counts them replaces the older one. So an interruption loses the
    newest vectors at most, and those that the state does not count are cut off. ``problem`` names the problem.
    """

    def __init__(self, folder: Path, problem: str):
        self.state = folder / "state.npz"
        self.vectors = folder / "basis.f64"
        self.problem = problem
        self._kept = 0  # vectors in the file that the state counts
        folder.mkdir(parents=True, exist_ok=True)

    def read_state(self) -> dict[str, NDArray[Any]] | None:
        """The arrays of the last ``save``, if any. Raises DataError for another problem, and OSError."""
        if not self.state.exists():
            return None
        try:
            with open_file(self.state) as file, np.load(file) as saved:
                state = dict(saved)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            raise DataError(f"{self.state} is damaged; delete the folder, or take another one") from None
        if str(state.get("problem")) != self.problem:
            raise self.another("problem")
        return state

    def another(self, what: str) -> DataError:
        """The error for a folder of another problem."""
        return DataError(f"{self.state.parent} holds the basis of another {what}; delete it, or take another folder")

    def read_vectors(self, out: FloatArray) -> None:
        """Fill ``out`` (k, n), C-contiguous, with the first k vectors. Raises DataError if there are fewer."""
        with open_file(self.vectors) as file:
            if file.readinto(out) < out.nbytes:  # type: ignore[arg-type]
                raise DataError(f"{self.vectors} is shorter than its state says; delete the folder")
        self._kept = len(out)

    def save(self, vectors: FloatArray, state: dict[str, NDArray[Any]]) -> None:
        """Write those of ``vectors`` (k, n), C-contiguous, that are not in the file, and the state. Raises OSError."""
        size = self.vectors.stat().st_size if self.vectors.exists() else 0
        row = 8 * vectors.shape[1]
        present = min(self._kept, size // row)
        append(self.vectors, row * present, vectors[present:].data)
        arrays: dict[str, Any] = state | {"problem": np.array(self.problem)}
        write_atomically(self.state, lambda file: np.savez(file, **arrays))
        self._kept = len(vectors)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint's folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open_locked(folder / "lock", wait=False)
    if lock is None:
        raise DataError(f"another process uses the checkpoint {folder}; wait for it, or take another folder")
    with lock:
        yield
