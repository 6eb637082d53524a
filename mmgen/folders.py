"""What a folder holds, found and written elsewhere: generators and tokenizers alike."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import check_target, read_json

from mmgen.training.exports import STEP


def find(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The exported form in a folder (the folder itself, or its export/) and its config.json."""
    folder = Path(folder)
    place = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    return place, read_json(place / "config.json")


def step_of(folder: str | Path) -> int | None:
    """Of which step of its run the exported weights are, where that is known."""
    file = find(folder)[0] / STEP
    return read_json(file)["step"] if file.is_file() else None


def is_generator(config: dict[str, Any]) -> bool:
    return config.get("family") == "generator"


def export(folder: str | Path, out: str | Path, format: str | None = None, checkpoint: str | None = None) -> str:
    """Writes the model in a folder to `out`, in our form or under the names of a published `format`; returns what was done.

    `checkpoint` ("best", "last" or a step) takes one of a run's checkpoints. Raises UserError for an unknown format, for a
    model that the format cannot express, and where there is no such checkpoint.
    """
    check_target(out, folder)
    if format is not None and (Path(out) / "config.json").is_file():
        raise UserError(f"{out} holds a model in our own form, whose weights these would replace: choose another --out")
    if checkpoint is not None:
        from mmgen.training.loop import export as export_checkpoint

        with tempfile.TemporaryDirectory() as scratch:
            step = export_checkpoint(folder, scratch, int(checkpoint) if checkpoint.isdigit() else checkpoint)
            return f"{export(scratch, out, format)}, of step {step}"
    place, config = find(folder)
    if is_generator(config):
        from mmgen import pretrained
        from mmgen.generator import load
    else:
        from mmgen_tokenizers import load, pretrained
    model = load(place)
    kind = "generator" if is_generator(config) else f"tokenizer ({model.family})"
    if format is None:
        (Path(out) / STEP).unlink(missing_ok=True)
        model.save(out)
        if (place / STEP).is_file():
            shutil.copy(place / STEP, out)
        return f"{out}: {kind}"
    pretrained.export(model, out, format)
    alone = " alone" if getattr(model, "tokenizer", None) else ""
    if alone and format in ("llamagen", "nar"):  # whose tokenizer is LlamaGen's; of the others none is written back
        alone += "; export the folder tokenizer/ beside its config.json with --format llamagen as well"
    return f"{out}: the weights of the {kind}{alone}, under the names of {format}"
