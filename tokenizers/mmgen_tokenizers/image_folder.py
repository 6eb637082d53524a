"""A folder of pictures, in the conventions of Hugging Face's imagefolder."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, nearest
from .pictures import is_picture, read_picture

# Names that promise a picture. Whether they keep it shows when they are read: a broken .jpg is a damaged picture.
SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .heic .heif .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .pbm .pcx .pfm .pgm .png .pnm .ppm .psd "
    ".qoi .tga .tif .tiff .webp".split()
)
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
METADATA = ("metadata.jsonl", "metadata.csv")

Row = dict[str, Any]


class ImageFolderSource:
    """Pictures by index: {"image": uint8 [H, W, 3], and "text" str or "label" int where the folder gives them}.

    Three kinds of folder, in this order of precedence:
    - with metadata.jsonl or metadata.csv: `file_name` and captions under the name `caption`, perhaps `label`;
    - with pictures in sub-folders only: each top folder is a class, in alphabetical order;
    - any other folder of pictures, sub-folders included: neither captions nor labels.
    Hidden files are skipped. A file of a name that promises no picture counts when its content is one.
    Captions may be missing, unless `captioned` says that every picture of the metadata needs one.

    Raises `UserError` for a folder without pictures, metadata that cannot be read and captions that are needed, or named,
    and missing; `source[i]` raises `PictureError` for a picture that cannot be read.
    """

    def __init__(self, folder: str | Path, caption: str = "text", captioned: bool = False):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}.{nearest(self.folder.name, _siblings(self.folder))}")
        metadata = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        self.labels: tuple[str, ...] | None = None
        rows = self._described(metadata[0], caption, captioned) if metadata else self._found()
        if not rows:
            raise UserError(f"there are no pictures in {self.folder}")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = dict(self._rows[index])
        return {"image": read_picture(self.folder / row.pop("file"))} | row

    def name(self, index: int) -> str:
        """The path of a picture below the folder."""
        return self._rows[index]["file"]

    def caption(self, index: int) -> str | None:
        return self._rows[index].get("text")

    def _described(self, metadata: Path, caption: str, captioned: bool) -> list[Row]:
        described = read_metadata(metadata)
        keys = {key for _, row in described for key in row}
        if caption not in keys and (captioned or caption != "text"):
            columns = ", ".join(sorted(keys - {"file_name"})) or "none"
            raise UserError(f"{metadata} has no captions named {caption!r} (it has: {columns}): name one of them as caption")
        rows = [{"file": row["file_name"]} for _, row in described]
        for (where, row), out in zip(described, rows, strict=True):
            if text := _caption(row.get(caption)):
                out["text"] = text
            elif captioned:
                raise UserError(f"{where} gives no {caption!r} for {row['file_name']}: each picture needs a caption")
        if "label" in keys:
            self.labels, values = _labels(described, metadata.suffix == ".csv")
            for out, value in zip(rows, values, strict=True):
                out["label"] = value
        return rows

    def _found(self) -> list[Row]:
        files = sorted(_pictures(self.folder))
        tops = sorted({file.parts[0] for file in files})
        if any(len(file.parts) == 1 for file in files):
            return [{"file": str(file)} for file in files]
        if tops and SPLITS.issuperset(top.lower() for top in tops):
            raise UserError(
                f"{self.folder} holds splits, not pictures: name one of {', '.join(str(self.folder / t) for t in tops)}"
            )
        self.labels = tuple(tops)
        number = {name: i for i, name in enumerate(tops)}
        return [{"file": str(file), "label": number[file.parts[0]]} for file in files]


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _pictures(folder: Path) -> Iterator[Path]:
    """Relative paths of all pictures below the folder; links are followed, hidden names are not."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and (path.suffix.lower() in SUFFIXES or is_picture(path)):
                yield path.relative_to(folder)


def read_metadata(path: Path) -> list[tuple[str, Row]]:
    """(where it stands, for messages; the row) of each line. Raises UserError that counts the wrong ones and names the
    first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else [_parsed(line) for line in file if line.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]} in UTF-8: {error}") from None
    found = [(f"row {number} of {path}", row) for number, row in enumerate(rows, 1)]
    wrong = [f"{where} {fault}" for where, row in found if (fault := _fault(row))]
    if wrong:
        raise UserError(wrong[0] + (f" ({len(wrong)} of {len(rows)} rows are wrong)" if len(wrong) > 1 else ""))
    return found


def _parsed(line: str) -> Row | ValueError:
    try:
        return json.loads(line)
    except ValueError as error:
        return error


def _fault(row: Row | ValueError) -> str | None:
    """What is wrong with a row."""
    if isinstance(row, ValueError):
        return f"is not JSON: {row}"
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        return "has no file_name: each row needs the path of its picture"
    return None


def _caption(value: Any) -> str | None:
    """The text, or the tags put together; None for what says nothing."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    return value if isinstance(value, str) and value.strip() else None


def _labels(described: list[tuple[str, Row]], untyped: bool) -> tuple[tuple[str, ...] | None, list[int]]:
    """Names of the classes and each row's number. Integers are numbers already, without names; anything else is a name.
    `untyped`: integers too come as texts."""
    values = [row.get("label") for _, row in described]
    for (where, row), value in zip(described, values, strict=True):
        if value is None or value == "":
            raise UserError(f"{where} gives no label for {row['file_name']}: each picture needs one, or none")
    if untyped and all(value.isdecimal() for value in values):
        values = [int(value) for value in values]
    if all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        return None, values
    names = sorted({str(value) for value in values})
    number = {name: i for i, name in enumerate(names)}
    return tuple(names), [number[str(value)] for value in values]
