"""What happens to pictures that cannot be read."""

import threading
import warnings
from itertools import chain
from typing import Any, Protocol

from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import PictureError


class Source(Protocol):
    """Random access to examples: dicts with some of "image" uint8 [H, W, 3], "ids" int32 [crops, N(, G)], "label", "text"."""

    labels: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def caption(self, index: int) -> str | None:
        """The text of an example, without reading its picture; None where it has none."""


class Replacing:
    """A source in which the next good example stands in for one whose picture is damaged.

    So an index always gives the same example, and steps and indices keep their relation. `damaged` holds index -> cause;
    each is named once in a warning. Raises `UserError` when no picture can be read. Safe to use from several threads.
    """

    def __init__(self, source: Source):
        self.source = source
        self.labels = source.labels
        self.damaged: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for other in chain(range(index, len(self)), range(index)):
            if other in self.damaged:
                continue
            try:
                return self.source[other]
            except PictureError as error:
                self._note(other, str(error))
        raise UserError(f"none of the {len(self)} pictures can be read; the first: {self.damaged[0]}")

    def caption(self, index: int) -> str | None:
        """That of the example itself: whether its picture is damaged shows when it is read."""
        return self.source.caption(index)

    def _note(self, index: int, cause: str) -> None:
        with self._lock:
            if index in self.damaged:
                return
            self.damaged[index] = cause
            count = len(self.damaged)
        warnings.warn(f"{cause}; the next good picture replaces it ({count} of {len(self)} damaged so far)", stacklevel=2)
