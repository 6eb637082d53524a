"""What a folder holds, in words; written elsewhere; made from a published checkpoint. Generators and tokenizers alike."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import check_target, read_json

from mmgen.training.exports import STEP
from mmgen.training.metrics import read_metrics


def find(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The exported form in a folder (the folder itself, or its export/) and its config.json."""
    folder = Path(folder)
    place = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    if place == folder and (folder / "experiment.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no export/ yet: it is written at the run's first checkpoint")
    return place, read_json(place / "config.json")


def is_generator(config: dict[str, Any]) -> bool:
    return config.get("family") == "generator"


def export(folder: str | Path, out: str | Path, format: str | None = None, checkpoint: str | None = None) -> str:
    """Writes the model in a folder to `out`, in our form or under the names of a published `format`; returns what was done.

    `checkpoint` ("best", "last" or a step) takes one of a run's checkpoints. Raises UserError for an unknown format, for a
    model that the format cannot express, and where there is no such checkpoint.
    """
    check_target(out, folder)
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
        model.save(out)
        return f"{out}: {kind}"
    pretrained.export(model, out, format)
    alone = " alone" if getattr(model, "tokenizer", None) else ""
    if alone and format in ("llamagen", "nar"):  # whose tokenizer is LlamaGen's; of the others none is written back
        alone += "; export the folder tokenizer/ beside its config.json with --format llamagen as well"
    return f"{out}: the weights of the {kind}{alone}, under the names of {format}"


def convert(
    family: str, checkpoint: str | Path, out: str | Path, config: dict | None = None, tokenizer: str | None = None
) -> str:
    """Converts a checkpoint of any family, of generators or tokenizers, to the folder `out`; returns what it holds now."""
    import mmgen_tokenizers as mt
    from mmgen_tokenizers.pretrained import FAMILIES as TOKENIZERS

    from mmgen import pretrained

    both = family in pretrained.FAMILIES and family in TOKENIZERS  # MaskBit calls both its halves so
    if family in pretrained.FAMILIES and not (both and not pretrained.FAMILIES[family].is_generator(checkpoint)):
        pretrained.convert(family, checkpoint, out, config, tokenizer)
    elif family not in TOKENIZERS:
        known = [*TOKENIZERS, *pretrained.FAMILIES]
        raise UserError(f"there is no family {family!r}; known: {', '.join(known)}.{nearest(family, known)}")
    elif tokenizer:
        raise UserError(f"{family} is a tokenizer itself: --tokenizer goes with a generator")
    else:
        mt.convert(family, checkpoint, out, config)
    return describe(out)


# In words ----------------------------------------------------------------------------------------------------------


def describe(path: str | Path) -> str:
    """What a folder (a run, an exported model, token shards) or an experiment's .py holds: `name  value` lines."""
    path = Path(path)
    if path.suffix == ".py":
        return describe_experiment(path)
    if (path / "manifest.json").is_file():
        return _page(f"{path}: token shards", {k: v for k, v in read_json(path / "manifest.json").items() if k != "files"})
    if (path / "experiment.json").is_file():
        return describe_run(path)
    return describe_model(path)


def describe_experiment(path: Path) -> str:
    """Every field that `mmgen train` can set, with its value."""
    from mmgen_tokenizers.configs import to_json

    from mmgen.config import load_experiment

    fields = "\n".join(f"  --{name} {_text(value)}" for name, value in _leaves(to_json(load_experiment(path))))
    return f"{path}: an experiment; mmgen train {path} sets its fields by\n{fields}"


def describe_run(folder: Path) -> str:
    """Experiment, progress and, once there is one, the exported model of a run."""
    parts = [_page(f"{folder}: a run", read_json(folder / "experiment.json"))]
    figures = {name: value for entry in read_metrics(folder) for name, value in entry.items()}
    if figures:
        parts.append(_page("last figures", figures))
    if (folder / "export" / "config.json").is_file():
        parts.append(describe_model(folder / "export"))
    return "\n".join(parts)


def describe_model(folder: Path) -> str:
    """An exported model, its size, and the tokenizer that goes with it."""
    place, config = find(folder)
    weights = sum(file.stat().st_size for file in place.glob("model*.safetensors"))
    kind = "generator" if is_generator(config) else "tokenizer"
    step = f" of step {read_json(place / STEP)['step']}" if (place / STEP).is_file() else ""
    pages = [_page(f"{place}: a {kind}, {weights / 1e6:.1f} MB of weights{step}", config)]
    if is_generator(config):
        pages.append(describe_plan(config["model"]))
    if (place / "tokenizer" / "config.json").is_file():
        pages.append(describe_model(place / "tokenizer"))
    return "\n".join(pages)


def describe_plan(model: dict[str, Any]) -> str:
    """The order in which a generator predicts, drawn, and what it costs. `model`: JSON of a GeneratorConfig."""
    from mmgen_tokenizers.configs import from_json

    from mmgen.decoding.autoregressive import schedule
    from mmgen.model.config import GeneratorConfig, Masked
    from mmgen.model.masking import hidden_share
    from mmgen.plan.drawing import drawing

    c = from_json(GeneratorConfig, model)
    plan = c.plan.build(c.layout, c.condition.slots)
    if isinstance(c.plan, Masked):
        holes = " ".join(f"{float(hidden_share(c.plan, t / c.plan.steps)):.2f}" for t in range(c.plan.steps))
        numbers = {"slots": plan.slots, "sites": plan.sites, "steps": c.plan.steps}
        return f"{_page('order of prediction', numbers)}\n  step -> share of the tokens that it finds hidden\n  {holes}"
    computed = sum(segment.width * (segment.stop - segment.start) for segment in schedule(plan))
    numbers = {"slots": plan.slots, "sites": plan.sites, "steps": plan.times, "padding": round(computed / plan.slots, 3)}
    lines = [f"  {line}" for line in drawing(plan, c.layout)]
    return "\n".join([_page("order of prediction", numbers), "  site -> step", *lines])


def _page(title: str, tree: dict[str, Any]) -> str:
    return "\n".join([title, *(f"  {name}  {_text(value)}" for name, value in _leaves(tree))])


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: Any) -> str:
    """As the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(_text, value[:20])) + (",..." if len(value) > 20 else "") or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
