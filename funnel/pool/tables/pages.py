"""Memory in pages of its own, which go back to the system at once.

Large arrays that are replaced by larger or newer ones would otherwise leave holes in the heap, as
large as the arrays together: an allocator keeps what it got.
"""

import math
import mmap
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)


def paged(shape: Sequence[int], dtype: type[Number]) -> npt.NDArray[Number]:
    """Return zeros of this shape and type; the system gives a page when it is first written.

    Args:
        shape: numbers above 0.
        dtype: of the elements.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)  # private to this process
    return np.frombuffer(pages, dtype=dtype).reshape(shape)
