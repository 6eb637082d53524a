"""Data: sources of pictures by index, and batches of them. No TensorFlow is imported here or behind it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.shards import is_shards

from mmgen import config
from mmgen.config import Data
from mmgen.data.batches import Batch, Batches
from mmgen.data.damaged import Replacing, Source

__all__ = ["Batch", "Batches", "Data", "Replacing", "Source", "batches", "open_source", "parse_source"]


def _open(data: Data, captioned: bool) -> Source:
    # Imported here: most programs use one kind, and TFDS is an extra.
    match data.source:
        case config.Shapes(split, number):
            from mmgen.data.shapes import ShapesSource

            return ShapesSource(split, number, data.size)
        case config.ImageFolder(folder, caption):
            from mmgen_tokenizers.image_folder import ImageFolderSource

            return ImageFolderSource(folder, caption, captioned)
        case config.TFDS(name, split, data_dir):
            from mmgen.data.tfds import TFDSSource

            return TFDSSource(name, split, data_dir)
        case config.NLVR(folder, split):
            from mmgen.data.nlvr import NLVRSource

            return NLVRSource(folder, split)
        case config.TokenShards(folder, cache):
            from mmgen.data.token_shards import TokenShardsSource

            if data.crop != "center" or data.flip:
                raise UserError(
                    "ids cannot be cropped or flipped: give crop and flip to `mmgen tokenize`, which stores several crops"
                )
            return TokenShardsSource(folder, cache)


def open_source(data: Data, captioned: bool = False) -> Replacing:
    """Opens the source that `data` names: `source[i]` is an example as the source has it (pictures in their own size).

    The next good example stands in for a damaged picture. `captioned`: metadata must have a caption for every picture. Raises
    `UserError` for what is not there, and for an empty source.
    """
    source = Replacing(_open(data, captioned))
    if not len(source):
        raise UserError(f"{data.source} holds no pictures")
    return source


def batches(
    data: Data,
    batch: int,
    seed: int = 0,
    start: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    source: Source | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Batches `start`, `start` + 1, ... of the stream that `Batches` describes. `source`: the opened one, to use it again."""
    source = open_source(data) if source is None else source
    return Batches(source, data, batch, seed, shuffle, repeat, rows).iterate(start)


def parse_source(spec: str, data_dir: str | Path | None = None) -> config.Source:
    """The source that a command line names: `shapes[:test]`, `nlvr:FOLDER[:test]`, `tfds:NAME[:VERSION][:SPLIT]`, or a folder
    of pictures or of token shards. `data_dir` is where TFDS sets are prepared. Raises `UserError` with the nearest name."""
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        split = rest or "train"
        if split not in ("train", "test"):
            raise UserError(f"shapes has the splits train and test, not {split!r}.{nearest(split, ['train', 'test'])}")
        return config.Shapes(split)
    if kind == "nlvr":
        test = rest.endswith(":test")
        return config.NLVR(rest.removesuffix(":test"), "test" if test else "train")
    if kind == "tfds":
        name, split = re.fullmatch(r"([^:]*(?::\d+\.\d+\.\d+)?):?(.*)", rest).groups()
        return config.TFDS(name, split or "train", None if data_dir is None else str(data_dir))
    folder = Path(spec)
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = nearest(folder.name, [*siblings, "shapes", "nlvr", "tfds"])
        kinds = "shapes[:test], nlvr:FOLDER[:test] or tfds:NAME[:SPLIT]"
        raise UserError(f"--data {spec}: no such folder. Name a folder, {kinds}.{hint}")
    return config.TokenShards(str(folder)) if is_shards(folder) else config.ImageFolder(str(folder))
