"""Data sets of TensorFlow Datasets that were prepared as array_record, read without TensorFlow."""

import logging
import os
from pathlib import Path
from typing import Any

from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.pictures import as_rgb

CAPTIONS = ("text", "caption", "sentence")


class TFDSSource:
    """Pictures by index: {"image": uint8 [H, W, 3], and "label" int, "text" str where the data set has them}.

    `name` is NAME, NAME/CONFIG or either with :VERSION (else the newest); `data_dir` defaults to TFDS_DATA_DIR or
    ~/tensorflow_datasets. Nothing is downloaded: `UserError` for what is not there, with the nearest name that is.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | Path | None = None):
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise UserError("reading TFDS data sets needs the package tensorflow-datasets: pip install 'mmgen[tfds]'") from None
        logging.getLogger("absl").addFilter(_says_something)
        folder = _prepared(name, Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser())
        builder = tfds.builder_from_directory(folder)
        base = split.partition("[")[0]
        if base not in builder.info.splits and base != "all":
            known = sorted(builder.info.splits)
            raise UserError(f"{name} has no split {base!r}, it has {', '.join(known)}.{nearest(base, known)}")
        features = builder.info.features
        if "image" not in features:
            raise UserError(f"{name} has no feature named 'image', only {', '.join(features)}: it holds no pictures")
        if builder.info.file_format.value != "array_record":
            raise UserError(
                f"{folder} was prepared as {builder.info.file_format.value}: prepare it with file_format='array_record'"
            )
        self._records = builder.as_data_source(split)
        self._undecoded = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self._label = "label" if "label" in features else None
        self._text = next((key for key in CAPTIONS if key in features), None)
        names = getattr(features["label"], "names", None) if self._label else None
        self.labels: tuple[str, ...] | None = tuple(names) if names else None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        example: dict[str, Any] = {"image": as_rgb(record["image"])}
        if self._label:
            example["label"] = int(record["label"])
        if self._text:
            example["text"] = _string(record[self._text])
        return example

    def caption(self, index: int) -> str | None:
        return _string(self._undecoded[index][self._text]) if self._text else None


def _string(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def _says_something(record: logging.LogRecord) -> bool:
    """False for the advice to install OpenCV, which would decode faster what is decoded once."""
    return "OpenCV is not installed" not in record.getMessage()


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".")) if name.replace(".", "").isdigit() else ()


def _prepared(name: str, data_dir: Path) -> Path:
    """DATA_DIR/NAME[/CONFIG]/VERSION, the newest version where none is named."""
    if not data_dir.is_dir():
        hint = nearest(data_dir.name, _names(data_dir.parent))
        raise UserError(f"there is no folder {data_dir}: set data_dir to where TFDS data sets are prepared.{hint}")
    path, _, version = name.partition(":")
    folder = data_dir
    for part in path.split("/"):
        if not (folder / part).is_dir():
            known = _names(folder)
            there = ", ".join(known) or "none"
            raise UserError(f"there is no TFDS data set {part!r} in {folder}, there is {there}.{nearest(part, known)}")
        folder = folder / part
    versions = sorted(filter(_version, _names(folder)), key=_version)
    if not versions:
        configs = ", ".join(f"{path}/{config}" for config in _names(folder)) or "nothing"
        raise UserError(f"{folder} holds no prepared version: name one of its configurations ({configs}) or prepare it")
    if version and version not in versions:
        raise UserError(f"{path} is prepared in {', '.join(versions)}, not in version {version}")
    return folder / (version or versions[-1])
