"""An experiment as frozen dataclasses: what is trained, on which pictures, how long and with which optimizer.

Written in Python (`experiments/*/`), stored as JSON in the run folder, rebuilt from there without running any Python.
Any field can be changed on the command line: `mmgen train FILE.py --optimizer.schedule.peak 1e-3`.
"""

import dataclasses
import importlib.util
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmgen_tokenizers.configs import dataclass_members, describe, field_types, from_json, item_types, literals, members, to_json
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.families.flexible import Flexible
from mmgen_tokenizers.families.multiscale import MultiScale
from mmgen_tokenizers.families.titok import TiTok
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.losses import TokenizerLosses

from mmgen.model.config import GeneratorConfig, Sampling


@dataclass(frozen=True)
class Shapes:
    """Embedded scenes of coloured shapes with captions, drawn from the index alone."""

    split: Literal["train", "test"] = "train"
    count: int = 100_000


@dataclass(frozen=True)
class ImageFolder:
    """A folder in Hugging Face's imagefolder convention: metadata.jsonl with file_name and captions, one folder a class, or
    pictures alone, which are enough for a tokenizer."""

    folder: str
    caption: str = "text"  # the key of the caption in metadata.jsonl


@dataclass(frozen=True)
class TFDS:
    """A TensorFlow Datasets set that was prepared as array_record; read without TensorFlow."""

    name: str
    split: str = "train"
    data_dir: str | None = None


@dataclass(frozen=True)
class TokenShards:
    """Pictures that `mmgen tokenize` has turned into ids; cached because random reads from object stores are slow."""

    folder: str
    cache: Literal["ram", "disk"] | None = "ram"


@dataclass(frozen=True)
class NLVR:
    """Boxes of NLVR's pictures (Suhr et al. 2017) with captions of what they hold: a folder whose metadata.jsonl tells each
    picture's "boxes" of objects (see data/nlvr.py). "test" has the pictures whose split has that name, "train" all others."""

    folder: str
    split: Literal["train", "test"] = "train"


Source = Shapes | ImageFolder | TFDS | TokenShards | NLVR


@dataclass(frozen=True)
class Data:
    source: Source = field(default_factory=Shapes)
    size: int = 32  # pictures are resized and cropped to size x size; token shards have the size that they were made with
    crop: Literal["center", "random"] = "center"
    flip: bool = False  # mirror half of the pictures; wrong where captions say left and right


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: up to `peak` over `warmup` steps, there for `hold` steps, then by `kind` down to `end` x peak."""

    kind: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    peak: float = 3e-4
    warmup: int = 0
    hold: int = 0
    end: float = 0.0
    boundaries: tuple[float, ...] = ()  # "steps": fractions of the run at which the rate is multiplied by `factor`
    factor: float = 0.1


@dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv 1711.05101); weight decay skips biases, norms and tables of one axis."""

    schedule: Schedule = field(default_factory=Schedule)
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float | None = 1.0  # largest global norm of the gradient


@dataclass(frozen=True)
class TokenizerTask:
    """Train a tokenizer: reconstruction, codebook and, where the losses ask for it, a discriminator."""

    model: VQGAN | MultiScale | TiTok | Flexible = field(default_factory=VQGAN)
    losses: TokenizerLosses = field(default_factory=TokenizerLosses)
    discriminator_peak: float = 1e-4  # learning rate of the discriminator's own AdamW
    start_from: str | None = None  # folder of a tokenizer whose weights training begins with: VQGAN for MultiScale, or its like
    revive_after: int | None = 200  # codes of a table unused for that many steps restart at encodings of the batch; None: never


@dataclass(frozen=True)
class GeneratorTask:
    """Train a generator on ids, or on pictures that `tokenizer` (a folder) encodes on the fly."""

    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    tokenizer: str | None = None
    condition_dropout: float = 0.1  # share of samples that see the null condition: guidance needs it
    sampling: Sampling = field(default_factory=Sampling)  # recommended settings, stored with the weights
    start_from: str | None = None  # folder of a generator whose weights training begins with; its condition may be another
    frozen: tuple[str, ...] = ()  # parameters that stay as they are: names, or beginnings of names ("blocks", "ends.input")


@dataclass(frozen=True)
class MeshSizes:
    """How devices share the work: their number along each axis of the mesh; -1, of one axis, is the rest of them.

    The results are the same to rounding; a run may continue on another mesh.
    """

    replica: int = 1  # copies of the whole state: each takes a part of the batch
    fsdp: int = -1  # takes a part of the batch too, and keeps a piece of all parameters, optimizer state and averaged weights
    tensor: int = 1  # splits heads, MLP units and the vocabulary
    sequence: int = 1  # splits the slots of each sample


@dataclass(frozen=True)
class Experiment:
    task: TokenizerTask | GeneratorTask
    data: Data
    validation: Data | None = None
    steps: int = 10_000
    batch: int = 64
    accumulate: int = 1  # the batch is computed in that many parts
    optimizer: Optimizer = field(default_factory=Optimizer)
    ema: float = 0.0  # decay of the averaged weights; 0: none
    seed: int = 0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators, float32 on CPU
    every_log: int = 20
    every_validate: int = 500
    every_preview: int = 1000
    every_checkpoint: int = 1000
    keep: int = 2  # of the newest checkpoints stay, beside the best
    keep_every: int = 0  # those whose step is a multiple of it stay as well; 0: none
    checkpoints: str | None = None  # where, if not in the run folder: a folder that all hosts see, or gs://bucket/folder
    mesh: MeshSizes = MeshSizes()

    def __post_init__(self):
        if min(self.batch, self.accumulate) < 1 or self.batch % self.accumulate:
            raise UserError(f"batch {self.batch} must be a multiple of accumulate {self.accumulate}, both at least 1")
        if self.keep_every and self.every_checkpoint and self.keep_every % self.every_checkpoint:
            raise UserError(f"keep_every {self.keep_every} must be a multiple of every_checkpoint {self.every_checkpoint}")


def save(experiment: Experiment, path: str | Path) -> None:
    """Writes the experiment as JSON, whole or not at all."""
    write_json(path, to_json(experiment))


def load(path: str | Path) -> Experiment:
    """Reads what `save` wrote; UserError names a field that this version does not know."""
    try:
        return from_json(Experiment, json.loads(Path(path).read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error


def load_experiment(path: str | Path) -> Experiment:
    """Runs an experiment's Python file and returns what its `experiment()` gives."""
    path = Path(path)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
        raise UserError(f"no experiment file {path}.{near}")
    spec = importlib.util.spec_from_file_location(f"mmgen_experiment_{path.stem}", path)
    if spec is None:
        raise UserError(f"{path} is not a Python file: an experiment is a .py with a function experiment()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "experiment", None)
    if function is None:
        raise UserError(f"{path} has no function experiment() that returns an mmgen.Experiment")
    return function()


def overrides(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """The experiment with the fields changed that `["--data.size", "64", "--data.flip=true", ...]` names.

    A member of a union is exchanged by its kind (`--data.source.kind TFDS --data.source.name mnist`): its other fields start
    from their defaults. Raises UserError at an unknown field, with the nearest right one, and at a value of another type.
    """
    tree = to_json(experiment)
    pairs = _pairs(arguments)
    # Kinds first, outermost first, whatever the order on the command line: the other fields belong to the new member.
    for path, text in sorted(pairs, key=lambda pair: (pair[0][-1] != "kind", len(pair[0]))):
        _set(Experiment, tree, path, text)
    return from_json(Experiment, tree)


def _pairs(arguments: Sequence[str]) -> list[tuple[list[str], str]]:
    pairs, rest = [], list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {flag!r}: fields are set by --any.field VALUE")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} needs a value")
            text = rest.pop(0)
        pairs.append((name.replace("-", "_").split("."), text))
    return pairs


def _set(cls: type, node: dict, path: list[str], text: str) -> None:
    """Sets the field at `path` below `node`, the JSON form of an instance of dataclass `cls`."""
    flag = "--" + ".".join(path)
    for depth, name in enumerate(path[:-1]):
        hint = _field(cls, name, path[:depth])
        if not dataclass_members(hint):
            raise UserError(f"{flag}: {'.'.join(path[: depth + 1])} is {describe(hint)} and has no field {path[depth + 1]!r}")
        node[name] = node[name] if node.get(name) is not None else {}
        node, cls = node[name], _member(hint, node[name])
        if path[depth + 1 :] == ["kind"] and len(dataclass_members(hint)) > 1:
            _exchange(hint, node, text, flag)
            return
    node[path[-1]] = _parse(_field(cls, path[-1], path[:-1]), text, flag)


def _field(cls: type, name: str, parents: list[str]) -> Any:
    hints = field_types(cls)
    if name not in hints:
        prefix = "".join(f"{parent}." for parent in parents)
        near = nearest(name, hints).replace("'", f"'--{prefix}", 1)
        raise UserError(f"unknown field --{prefix}{name}: {cls.__name__} has {', '.join(hints)}.{near}")
    return hints[name]


def _member(hint: Any, node: dict) -> type:
    classes = dataclass_members(hint)
    return classes.get(node.get("kind")) or next(iter(classes.values()))


def _exchange(hint: Any, node: dict, kind: str, flag: str) -> None:
    classes = dataclass_members(hint)
    if kind not in classes:
        raise UserError(f"{flag}: unknown kind {kind!r}, expected one of {', '.join(classes)}.{nearest(kind, classes)}")
    if node.get("kind") != kind:
        node.clear()
        node["kind"] = kind


def _parse(hint: Any, text: str, flag: str) -> Any:
    """The JSON value that a command line text means for a field of type `hint`."""
    for member in sorted(members(hint), key=lambda member: member is not type(None)):  # "none" is no text where None is allowed
        value = _read(member, text)
        try:
            return to_json(from_json(member, value), member)
        except UserError:
            continue
    raise UserError(f"{flag}: expected {describe(hint)}, found {text!r}.{nearest(text, literals(hint))}")


def _read(hint: Any, text: str) -> Any:
    """A text as a value that `from_json` can check against `hint`; the text itself where it cannot be read as one."""
    words = {"true": True, "yes": True, "false": False, "no": False}
    if hint is type(None):
        return None if text.lower() in ("none", "null") else text
    if hint is bool:
        return words.get(text.lower(), text)
    if hint is int or hint is float:
        return _number(hint, text)
    if typing.get_origin(hint) is tuple:
        items = [item.strip().strip("'\"") for item in text.strip("()[] ").split(",") if item.strip()]
        return [_read(item_hint, item) for item_hint, item in zip(item_types(hint, len(items)), items, strict=True)]
    if typing.get_origin(hint) is Literal:
        return next((choice for choice in typing.get_args(hint) if str(choice) == text), text)
    if dataclasses.is_dataclass(hint) and text.startswith("{"):
        return _json(text)
    return text


def _number(kind: type, text: str) -> int | float | str:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        return text
    return int(value) if kind is int and value.is_integer() else value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
