"""Several processes that measure one set (jax.distributed): each computes some of its pieces, all get what each has found.

Of one process `own` gives everything and `gather` what it was given.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Shaped

T = TypeVar("T")


def own(pieces: Iterable[T]) -> Iterator[T]:
    """Those that this process computes: of n processes every n-th one."""
    return itertools.islice(pieces, jax.process_index(), None, jax.process_count())


def gather(pieces: Sequence[Shaped[np.ndarray, "b F"]], dtype: np.dtype) -> list[Shaped[np.ndarray, "b F"]]:
    """The pieces of all processes, in the order in which one process would have computed them; bit for bit.

    Each process must call it, also one that has no piece.
    """
    if jax.process_count() == 1:
        return [np.asarray(piece, dtype) for piece in pieces]
    counts = _from_all(np.array([len(pieces), *(pieces[0].shape[1:] if pieces else [0])], np.int32))
    most, width = counts.max(0)
    lengths = _from_all(_padded(np.array([len(piece) for piece in pieces], np.int32), most))
    rows = _padded(np.concatenate([np.zeros((0, width), dtype), *pieces]).astype(dtype), lengths.sum(1).max())
    found = _from_all(rows.view(np.uint8)).view(dtype)  # as bytes: JAX would round float64
    ends = np.cumsum(lengths, 1)
    return [
        found[process, ends[process, turn] - lengths[process, turn] : ends[process, turn]]
        for turn in range(most)
        for process in range(len(counts))
        if turn < counts[process, 0]
    ]


def _from_all(array: np.ndarray) -> np.ndarray:
    from jax.experimental.multihost_utils import process_allgather

    return np.ascontiguousarray(process_allgather(array))


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])
