"""Token shards as a source: pictures that `mmgen tokenize` has turned into ids."""

from pathlib import Path
from typing import Any, Literal

from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.shards import ShardReader


class TokenShardsSource:
    """Pictures by index: {"ids": int32 [crops, N(, G)], and "label" int, "text" str where the shards have them}.

    `reader` is the `ShardReader` behind it: its `tokenizer` (fingerprint) and `layout` tell whether a generator fits.
    """

    def __init__(self, folder: str | Path, cache: Literal["ram", "disk"] | None = "ram"):
        self.reader = ShardReader(folder, cache)
        if self.reader.mixed:
            raise UserError(f"{folder} holds pictures of several shapes, and a generator reads one: encode them with --square")
        self.labels = self.reader.labels

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.reader[index]
        names = {"ids": "ids", "label": "label", "caption": "text"}
        return {name: record[key] for key, name in names.items() if key in record}

    def caption(self, index: int) -> str | None:
        return self.reader.about(index).get("caption")
