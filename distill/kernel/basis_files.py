"""The files that keep a basis of block Lanczos between runs."""

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
from distill.records import read_arrays


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
        self._checksum: int | None = 0  # of these vectors, by zlib.crc32
        folder.mkdir(parents=True, exist_ok=True)

    def read_state(self) -> dict[str, NDArray[Any]] | None:
        """The arrays of the last ``save``, if any. Raises DataError for another problem, and OSError."""
        if not self.state.exists():
            return None
        try:
            state = read_arrays(self.state)
        except ValueError as error:
            raise self.damaged(f"{self.state} is damaged ({error})") from None
        if str(state.get("problem")) != self.problem:
            raise self.another("problem")
        self._checksum = int(state["checksum"]) if "checksum" in state else None  # of an older version
        return state

    def another(self, what: str) -> DataError:
        """The error for a folder of another problem."""
        return DataError(f"{self.state.parent} holds the basis of another {what}; delete it, or take another folder")

    def damaged(self, what: str) -> DataError:
        """The error for a damaged file."""
        return DataError(f"{what}; delete the folder {self.state.parent}, or take another one")

    def read_vectors(self, out: FloatArray) -> None:
        """Fill ``out`` (k, n), C-contiguous, with the first k vectors. Raises DataError if they are not those saved."""
        with open_file(self.vectors) as file:
            if file.readinto(out) < out.nbytes:  # type: ignore[arg-type]
                raise self.damaged(f"{self.vectors} is shorter than its state says")
        checksum = zlib.crc32(out.data)
        if self._checksum not in (None, checksum):
            raise self.damaged(f"{self.vectors} is damaged (its checksum is another)")
        self._kept = len(out)
        self._checksum = checksum

    def save(self, vectors: FloatArray, state: dict[str, NDArray[Any]]) -> None:
        """Write those of ``vectors`` (k, n), C-contiguous, that are not in the file, and the state. Raises OSError."""
        size = self.vectors.stat().st_size if self.vectors.exists() else 0
        row = 8 * vectors.shape[1]
        present = min(self._kept, size // row)
        append(self.vectors, row * present, vectors[present:].data)
        checksum = zlib.crc32(vectors[self._kept :].data, self._checksum or 0)
        arrays: dict[str, Any] = state | {"problem": np.array(self.problem), "checksum": np.array(checksum)}
        write_atomically(self.state, lambda file: np.savez(file, **arrays))
        self._kept = len(vectors)
        self._checksum = checksum


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint's folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open_locked(folder / "lock")
    if lock is None:
        raise DataError(f"another process uses the checkpoint {folder}; wait for it, or take another folder")
    with lock:
        yield
