"""Sets of pictures to be scored: a folder of them, or an .npz as ADM's evaluator reads it (uint8 "arr_0"), or several."""

import contextlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from ..errors import UserError
from ..image_folder import ImageFolderSource
from ..pictures import PictureError, adm_crop, fit
from ..streaming import groups

Batch = UInt8[np.ndarray, "B H W 3"]
CROPS = {"adm": adm_crop, "lanczos": fit}
ORDER = 0  # seed of the order of a folder's pictures: the Inception score is of pieces, which must not be classes


class ArrayFiles:
    """The pictures of one or more .npz files, read as they are needed."""

    skipped = 0

    def __init__(self, paths: Sequence[Path]):
        self.paths, headers = paths, [_header(path) for path in paths]
        self.size, self._counts = headers[0][1:3], [shape[0] for shape in headers]
        for path, shape in zip(paths, headers, strict=True):
            if shape[1:3] != self.size:
                raise UserError(f"{path} has pictures of {_text(shape[1:3])}, {paths[0]} of {_text(self.size)}: score one size")

    def __len__(self) -> int:
        return sum(self._counts)

    def batches(self, rows: int) -> Iterator[Batch]:
        for path in self.paths:
            with _stream(path) as (stream, shape):
                for start in range(0, shape[0], rows):
                    wanted = (min(rows, shape[0] - start), *shape[1:])
                    yield np.frombuffer(_read(stream, int(np.prod(wanted)), path), np.uint8).reshape(wanted)


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """arr_0's numbers and shape. Raises UserError for what is no array of pictures."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or fortran or not shape[0]:
                wanted = "uint8 [N, H, W, 3], colours last (grey ones have three equal channels)"
                raise UserError(f"{path}: arr_0 is {dtype} {list(shape)}; pictures are {wanted}")
            yield stream, shape
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is no .npz with pictures under arr_0 ({error})") from None


def _header(path: Path) -> tuple[int, ...]:
    with _stream(path) as (_, shape):
        return shape


def _read(stream: BinaryIO, count: int, path: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise UserError(f"{path} ends before its last picture: it was not written to its end")
    return data


class PictureFolder:
    """The pictures of a folder, in a fixed order that mixes them; cut to `size` where it is given, else all of one size.

    What cannot be read is named on stderr and left out, `skipped` of them.
    """

    def __init__(self, folder: Path, size: tuple[int, int] | None, crop: str = "adm"):
        self._source, self._crop, self.skipped = ImageFolderSource(folder), CROPS[crop], 0
        if size is not None and size[0] != size[1]:
            raise UserError(f"{folder}: pictures are cut to squares, not to {_text(size)}: give them in that size, as an .npz")
        self.size, self._cut = size, size is not None
        self._order = np.random.default_rng(ORDER).permutation(len(self._source))

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, rows: int) -> Iterator[Batch]:
        for loaded in groups(self._load, len(self), rows):
            good = [picture for picture in loaded if not isinstance(picture, PictureError)]
            for error in (item for item in loaded if isinstance(item, PictureError)):
                self.skipped += 1
                print(f"skipped: {error}", file=sys.stderr)
            for picture in good:
                self._check(picture)
            if good:
                yield np.stack(good)
        if self.skipped == len(self):
            raise UserError(f"none of the pictures in {self._source.folder} can be read")

    def _load(self, place: int) -> UInt8[np.ndarray, "H W 3"] | PictureError:
        try:
            picture = self._source[int(self._order[place])]["image"]
        except PictureError as error:
            return error
        return self._crop(picture, self.size[0]) if self._cut else picture

    def _check(self, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        self.size = self.size or picture.shape[:2]
        if picture.shape[:2] != self.size:
            raise UserError(
                f"{self._source.folder} has pictures of {_text(self.size)} and of {_text(picture.shape[:2])}: say with --size "
                "PIXELS to which squares they are to be cut"
            )


def open_pictures(path: str | Path, size: tuple[int, int] | None = None, crop: str = "adm") -> ArrayFiles | PictureFolder:
    """The set in a file or folder. `size` and `crop` are for folders of pictures; an array of another size is refused."""
    path = Path(path)
    if not path.is_dir():
        files = [path]
    else:
        files = sorted(path.glob("*.npz"))
        if not files:
            return PictureFolder(path, size, crop)
    found = ArrayFiles(files)
    if size is not None and found.size != tuple(size):
        raise UserError(f"{path} has pictures of {_text(found.size)}, not of {_text(size)}: score sets of one size")
    return found


def _text(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
