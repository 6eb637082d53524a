"""Batches: each a pure function of (seed, step), whatever came before it and however many hosts share the work.

The order of an epoch is a plain permutation: 20 ms and 8 MB for a million pictures. (grain.MapDataset does the same by an
index cipher that takes 5 ms a picture where there are only ten, and 3 s to import.)
"""

import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import numpy as np
from mmgen_tokenizers.pictures import fit

from mmgen.config import Data
from mmgen.data.damaged import Source

WORKERS = max(1, min(8, (os.cpu_count() or 1) // 2))  # threads that read pictures
AHEAD = max(4, WORKERS)  # batches that wait ready for the training loop

Batch = dict[str, Any]


def _example(data: Data, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """One visit: the picture cropped to its square, one of the crops of ids."""
    example = dict(example)
    if "image" in example:
        example["image"] = fit(example["image"], data.size, data.crop, data.flip, rng)
    if "ids" in example:
        example["ids"] = example["ids"][rng.integers(len(example["ids"]))]
    return example


def _stack(examples: list[dict[str, Any]]) -> Batch:
    """Arrays with a batch axis in front, integers as int32 [B], captions as a list. What some lack, the batch lacks."""
    keys = [key for key in examples[0] if all(key in example for example in examples)]
    columns = {key: [example[key] for example in examples] for key in keys}
    return {key: values if key == "text" else _column(values) for key, values in columns.items()}


def _column(values: list) -> np.ndarray:
    return np.stack(values) if isinstance(values[0], np.ndarray) else np.array(values, np.int32)


class Batches:
    """`batches[k]`: batch k of a stream over the source, as a dict of NumPy arrays.

    "image" uint8 [B, size, size, 3], "ids" int32 [B, N(, G)], "label" int32 [B], "text" list of str: what the source has.
    With `shuffle` every epoch has an order of its own; with `repeat` there are batches without end, else those of one epoch,
    without the last, smaller one unless it is the only one. `rows`: those of each batch that this host reads (default: all);
    all hosts together see the same batch whatever their number.
    """

    def __init__(
        self,
        source: Source,
        data: Data,
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        repeat: bool = True,
        rows: Sequence[int] | None = None,
    ):
        self._count = len(source)
        self._repeat = repeat
        self._batch = batch if repeat else min(batch, self._count)
        self._rows = range(batch) if rows is None else rows
        self._source, self._data, self._seed = source, data, seed % 2**32
        self._order = functools.lru_cache(2)(self._permutation if shuffle else lambda _: range(self._count))

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([0, self._seed, epoch]).permutation(self._count)

    def _visit(self, position: int) -> dict[str, Any]:
        epoch, place = divmod(position, self._count)
        rng = np.random.default_rng([1, self._seed, epoch, place])
        return _example(self._data, self._source[int(self._order(epoch)[place])], rng)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return self._count // self._batch

    def __getitem__(self, step: int) -> Batch:
        if not self._repeat and step >= len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        rows = (row for row in self._rows if row < self._batch)
        return _stack([self._visit(step * self._batch + row) for row in rows])

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Batches start, start + 1, ..., made ahead by threads: exactly those of a stream that began at 0."""
        steps = iter(count(start) if self._repeat else range(start, len(self)))
        threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="batches")
        try:
            waiting = deque(threads.submit(self.__getitem__, step) for step in islice(steps, AHEAD))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(threads.submit(self.__getitem__, step) for step in islice(steps, 1))
                yield batch
        finally:  # also when the iterator is dropped
            threads.shutdown(wait=False, cancel_futures=True)
