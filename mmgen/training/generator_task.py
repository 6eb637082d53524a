"""Training a generator: ids from token shards, or pictures that a frozen tokenizer encodes inside the step."""

import functools
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int
from mmgen_tokenizers.api import FAMILIES
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import flatten, read_json, save_arrays, unflatten
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import grid, to_float, to_uint8, with_captions, write_png
from mmgen_tokenizers.progress import Counter

from mmgen.config import Data, Experiment, GeneratorTask, TokenShards
from mmgen.data import Source
from mmgen.data.text import FILE, TextTokenizer, empty_prompt
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, FeatureCondition, NextScale, RandomOrder, TextCondition
from mmgen.model.flops import training_operations
from mmgen.model.inputs import adopt
from mmgen.model.layers import compute_dtype
from mmgen.model.orders import draw_orders, in_orders
from mmgen.parallel.distributed import first_process
from mmgen.parallel.mesh import mesh_of
from mmgen.parallel.rules import by_rows
from mmgen.training import inherit
from mmgen.training.optimizer import adamw, only
from mmgen.training.state import Tree
from mmgen.training.tasks import opened, training_batches, validation_batches

CAPTIONS = 10_000  # that the text model learns from
NO_CAPTION = "some pictures of the data have no caption, and the model reads prompts: leave them out"
SHOWN = 16  # pictures of a preview


def settled(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment, whose next-scale prediction takes quantizer and layout of its tokenizer where it says nothing of them."""
    task = experiment.task
    if task.model.plan != NextScale() or task.tokenizer is None:
        return experiment
    tokenizer = _tokenizer(task.tokenizer, folder)
    if not isinstance(tokenizer.config, mt.MultiScale):
        return experiment
    model = replace(task.model, plan=NextScale(tokenizer.config.quantizer), layout=tokenizer.layout)
    return replace(experiment, task=replace(task, model=model))


class GeneratorTraining:
    """params and weights are those of `mmgen.model.transformer.init`; no extra."""

    def __init__(self, experiment: Experiment, folder: Path | None):
        if isinstance(experiment.task.model.condition, FeatureCondition):
            raise UserError("models conditioned on features are loaded and sampled from, not trained: use TextCondition")
        self.experiment, self.config, self.folder = experiment, experiment.task.model, folder
        self.dtype = compute_dtype(experiment.compute_dtype)
        unused = folder is None and isinstance(experiment.data.source, TokenShards)
        self.tokenizer = None if unused else _tokenizer(experiment.task.tokenizer, folder)
        self.frozen = {"tokenizer": self.tokenizer.params} if self.tokenizer else {}
        self.unit = ("tokens", self.config.layout.sites * self.config.layout.groups)
        self.operations = training_operations(self.config)
        self.generator: Generator | None = None
        self.exported: set[Path] = set()

    @functools.cached_property
    def source(self) -> Source:
        return self._open("data")

    @functools.cached_property
    def held_out(self) -> Source | None:
        return self._open("validation") if self.experiment.validation else None

    def _open(self, name: Literal["data", "validation"]) -> Source:
        return opened(self.experiment, name, captioned=isinstance(self.config.condition, TextCondition))

    @functools.cached_property
    def text(self) -> TextTokenizer | None:
        """RUN/text.model: when the run starts, that of the generator it starts from, or learned from captions of its data."""
        path, condition, begin = self.folder / FILE, self.config.condition, self.experiment.task.start_from
        if not isinstance(condition, TextCondition):
            return None
        if path.is_file():
            return TextTokenizer.load(path)
        text = inherit.text_model(begin, condition) if begin else None
        if text is None:
            return _learned_text_model(condition, path, self.source)
        text.save(path)
        return text

    @functools.cached_property
    def labels(self) -> Sequence[str] | None:
        """Names of the classes: once there is an export, its own."""
        exported = self.folder / "export" / "config.json"
        return read_json(exported)["labels"] if exported.is_file() else self.source.labels

    def check(self) -> None:
        experiment = self.experiment
        for data, source in ((experiment.data, self.source), (experiment.validation, self.held_out)):
            if source is not None:
                _check_layout(experiment.task, data, source, self.tokenizer)
                _check_condition(self.config.condition, data, source)
        _check_names(self.source, self.held_out)
        _check_codes(self.config.plan, experiment.task.tokenizer, self.tokenizer)
        _check_frozen(experiment.task)
        _ = self.text  # learned now, before the first batch

    def optimizer(self, experiment: Experiment) -> optax.GradientTransformation:
        update = adamw(experiment.optimizer, experiment.steps, decayed(transformer.axes(self.config)))
        return only(update, jax.tree.map(operator.not_, self.fixed)) if experiment.task.frozen else update

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        params = transformer.init(self.config, key)
        if isinstance(self.config.plan, NextScale) and self.tokenizer:
            params = adopt(self.config, params, self.tokenizer.params["quantizer"])
        return params, {}

    def axes(self, params: Tree, mesh: Mesh) -> Tree:
        return transformer.axes(self.config)

    def inherited(self) -> Tree:
        """Weights of task.start_from; says what becomes of its classes."""
        name = self.experiment.task.start_from
        if name is None:
            return {}
        source = inherit.load(name)
        params, lines = inherit.fitted(source, name, self.config, self.labels)
        if source.tokenizer and self.tokenizer and source.tokenizer.fingerprint != self.tokenizer.fingerprint:
            lines.append("its ids were those of another tokenizer")
        if first_process():
            print("\n".join([f"starts from {name}", *(f"  {line}" for line in lines)]))
        return params

    def gradients(self, params, extra, frozen, batch, key, step):
        key_drop, key_model, key_order = jax.random.split(key, 3)
        batch = self.drop_condition(self.with_ids(frozen, batch), key_drop)
        if isinstance(self.config.plan, RandomOrder):
            orders = draw_orders(self.config, key_order, step / self.experiment.steps, len(batch["ids"]))
            batch = in_orders(self.config, batch, orders)

        def loss(params: Tree):
            return transformer.loss(self.config, self._trained(params), batch, key_model, self.dtype)

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        return grads, extra, metrics

    @functools.cached_property
    def fixed(self) -> Tree:
        """True for parameters that training leaves alone: what the model marks as frozen, and task.frozen."""
        flat, parts = flatten(transformer.axes(self.config)), self.experiment.task.frozen
        return unflatten({name: "frozen" in axes or any(_within(name, part) for part in parts) for name, axes in flat.items()})

    def _trained(self, params: Tree) -> Tree:
        """Without a gradient to what training leaves alone."""
        return jax.tree.map(lambda fixed, p: jax.lax.stop_gradient(p) if fixed else p, self.fixed, params)

    def with_ids(self, frozen: Tree, batch: Tree) -> Tree:
        """The batch with pictures replaced by their ids."""
        if "image" not in batch:
            return batch
        encode = FAMILIES[self.tokenizer.family][1].encode

        def ids_of(tokenizer: Tree, pictures: jax.Array) -> jax.Array:
            return encode(self.tokenizer.config, tokenizer, to_float(pictures), jnp.float32)  # as `tokenize` does

        ids = by_rows(ids_of)(frozen["tokenizer"], batch["image"])
        return {"ids": ids} | {name: value for name, value in batch.items() if name != "image"}

    def drop_condition(self, batch: Tree, key: jax.Array) -> Tree:
        """Some samples see the null condition instead of theirs, so that guidance has both (arXiv 2207.12598)."""
        rows = len(batch["ids"])
        null = jax.random.bernoulli(key, self.experiment.task.condition_dropout, (rows,))
        if "label" in batch:
            return {**batch, "label": jnp.where(null, self.config.condition.classes, batch["label"])}
        ids, valid = empty_prompt(self.config.condition.length)
        prompt = jnp.where(null[:, None], ids, batch["prompt"])
        return {**batch, "prompt": prompt, "prompt_valid": jnp.where(null[:, None], valid, batch["prompt_valid"])}

    def after_update(self, params: Tree, extra: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        return params, extra

    def weights(self, params: Tree) -> Tree:
        return params

    def validate(self, weights: Tree, extra: Tree, frozen: Tree, batch: Tree) -> dict[str, jax.Array]:
        return transformer.loss(self.config, weights, self.with_ids(frozen, batch), dtype=self.dtype)[1]

    def training_batches(self, start: int):
        return training_batches(self.experiment, self.source, start)

    @property
    def validation_batches(self) -> Callable | None:
        return (lambda: validation_batches(self.experiment, self.held_out)) if self.held_out else None

    def prepare(self, batch: dict) -> Tree:
        given = {name: batch[name] for name in ("ids", "image") if name in batch}
        if isinstance(self.config.condition, ClassCondition):
            return given | {"label": _known(batch["label"], self.config.condition.classes)}
        if "text" not in batch:
            raise UserError(NO_CAPTION)
        ids, valid = self.text.encode(batch["text"], self.config.condition.length, warn=False)
        return given | {"prompt": ids, "prompt_valid": valid}

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, c, size = self.experiment.batch, self.config, self.experiment.data.size
        groups = (c.layout.groups,) if c.layout.groups > 1 else ()
        ids = {"ids": jax.ShapeDtypeStruct((rows, c.layout.sites, *groups), jnp.int32)}
        image = {"image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)}
        given = ids if isinstance(self.experiment.data.source, TokenShards) else image
        if isinstance(c.condition, ClassCondition):
            return given | {"label": jax.ShapeDtypeStruct((rows,), jnp.int32)}
        prompt = (rows, c.condition.length)
        return given | {
            "prompt": jax.ShapeDtypeStruct(prompt, jnp.int32), "prompt_valid": jax.ShapeDtypeStruct(prompt, bool),
        }  # fmt: skip

    def preview(self, weights: Tree, folder: Path, step: int) -> None:
        """Samples for the same conditions every time, with the recommended settings."""
        if self.tokenizer is None:
            return
        folder.mkdir(exist_ok=True)
        condition = self._shown()
        out = self._generator(weights).generate(**condition, seed=self.experiment.seed)
        ((name, rows),) = condition.items()
        texts = [str(row) for row in rows]
        page = grid(with_captions(to_uint8(out.images), texts), columns=4, gap=6)
        write_png(folder / f"step-{step:07d}.png", page, {"step": str(step), name: "\n".join(texts)})

    def _shown(self) -> dict[str, list]:
        if isinstance(self.config.condition, ClassCondition):
            return {"labels": [i % self.config.condition.classes for i in range(SHOWN)]}
        source = self.held_out or self.source
        return {"prompts": [source.caption(int(i)) for i in np.linspace(0, len(source) - 1, SHOWN)]}

    def export(self, weights: Tree, folder: Path) -> None:
        """All of it once, then the weights alone: nothing else changes."""
        if folder in self.exported:
            save_arrays(folder, weights)
        else:
            self._new_generator(weights).save(folder)
            self.exported.add(folder)

    def _generator(self, weights: Tree) -> Generator:
        """One generator whose compiled programs serve all weights."""
        if self.generator is None:
            self.generator = self._new_generator({})
        return self.generator.copied(weights)

    def _new_generator(self, weights: Tree) -> Generator:
        kind = "ema" if self.experiment.ema else "raw"
        sampling, mesh = self.experiment.task.sampling, mesh_of(self.experiment)
        tensor = 1 if mesh is None or jax.local_device_count() % mesh.shape["tensor"] else mesh.shape["tensor"]
        return Generator(self.config, weights, self.tokenizer, self.text, sampling, self.labels, kind, self.dtype, tensor)


def decayed(axes: Tree) -> Tree:
    """Decay mask: what has two axes or more beside that of the stacked layers, is trained, and is no bias and no place
    (VAR's and RAR's authors spare those, too)."""

    def decays(path: tuple, names: tuple) -> bool:
        matrix = len([name for name in names if name != "layers"]) >= 2
        place = path[0].key == "ends" and path[1].key in ("places", "number")
        return matrix and "frozen" not in names and not place and not path[-1].key.endswith("bias")  # some have two axes

    return jax.tree_util.tree_map_with_path(decays, axes, is_leaf=lambda names: isinstance(names, tuple))


def _within(name: str, part: str) -> bool:
    """Whether a parameter's name is `part`, or begins with it."""
    return name == part or name.startswith(f"{part}.")


def _tokenizer(given: str | None, folder: Path | None) -> mt.Tokenizer | None:
    """The tokenizer that the experiment names; a run that has begun uses its own copy."""
    copy_of_it = folder and folder / "export" / "tokenizer"
    if given is None or (copy_of_it and (copy_of_it / "config.json").is_file()):
        return None if given is None else mt.load(copy_of_it)
    try:
        return mt.load(given)
    except UserError as error:
        raise UserError(f"task.tokenizer: {error}") from error


def _check_layout(task: GeneratorTask, data: Data, source: Source, tokenizer: mt.Tokenizer | None) -> None:
    """Raises UserError where the ids of the data are not those that the model expects."""
    if not isinstance(data.source, TokenShards):
        if tokenizer is None:
            raise UserError("pictures need a tokenizer to become ids: set task.tokenizer to its folder, or use token shards")
        found = tokenizer.layout_for(data.size, data.size)
        _same(task.model.layout, found, f"the tokenizer {task.tokenizer}, for pictures of {data.size} pixels,")
        return
    reader, shards = source.source.reader, f"the set of token shards {data.source.folder}"
    _same(task.model.layout, reader.layout, shards)
    if tokenizer and tokenizer.fingerprint != reader.tokenizer:
        raise UserError(
            f"{shards} was made by tokenizer {reader.tokenizer}, but {task.tokenizer} is {tokenizer.fingerprint}: "
            "run `mmgen tokenize` with it"
        )


def _same(expected: TokenLayout, found: TokenLayout, what: str) -> None:
    if expected != found:
        raise UserError(f"{what} gives {found}, the model expects {expected}: set task.model.layout to match")


def _check_condition(condition: ClassCondition | TextCondition, data: Data, source: Source) -> None:
    """Raises UserError where the data lack what the model is conditioned on."""
    has, where = source[0].keys(), f"the data ({data.source})"
    if isinstance(condition, TextCondition) and "text" not in has:
        raise UserError(f"the model reads prompts, and {where} have no captions (metadata.jsonl with file_name and text)")
    if isinstance(condition, ClassCondition) and "label" not in has:
        raise UserError(f"the model reads labels, and {where} have none (one folder a class)")
    if isinstance(condition, ClassCondition) and source.labels and len(source.labels) != condition.classes:
        raise UserError(f"{where} have {len(source.labels)} classes: set task.model.condition.classes to that number")


def _check_names(source: Source, held_out: Source | None) -> None:
    """Raises UserError where class 3 of the validation data is another class than class 3 of the training data."""
    if held_out is None or not (source.labels and held_out.labels) or list(source.labels) == list(held_out.labels):
        return
    differ = sorted(set(source.labels) ^ set(held_out.labels))
    raise UserError(
        f"training and validation data have other classes ({', '.join(differ[:5]) or 'in another order'} in one of them only): "
        "give both the same folders, or set --validation none"
    )


def _check_codes(plan: object, name: str | None, tokenizer: mt.Tokenizer | None) -> None:
    """Raises UserError where the model would read other codes than those of the tokenizer."""
    if not isinstance(plan, NextScale):
        return
    if tokenizer is None:
        raise UserError("next-scale prediction reads the codes of its tokenizer: set task.tokenizer to its folder")
    if tokenizer.config.quantizer != plan.quantizer:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.config.quantizer}, the model expects {plan.quantizer}: "
            "set task.model.plan.quantizer to match"
        )


def _check_frozen(task: GeneratorTask) -> None:
    """Raises UserError at a part that no model of this kind has, and where nothing would be trained."""
    names = list(flatten(transformer.axes(task.model)))
    for part in task.frozen:
        if not any(_within(name, part) for name in names):
            parts = sorted({name.rsplit(".", n)[0] for name in names for n in range(name.count(".") + 1)})
            raise UserError(f"task.frozen: the model has no part {part!r}.{nearest(part, parts)} Its parts: {', '.join(parts)}")
    if all(any(_within(name, part) for part in task.frozen) for name in names):
        raise UserError("task.frozen names all of the model: leave something to train")


def _known(labels: Int[np.ndarray, "b"], classes: int) -> Int[np.ndarray, "b"]:
    """The labels; a gather on the device would silently take the last class for one that is too large."""
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"the data have label {labels.max()}: set task.model.condition.classes, now {classes}, to more")
    return labels


def _captions(source: Source) -> list[str]:
    """Some of them, evenly spread over the data; their pictures are not read."""
    indices, captions = range(0, len(source), -(-len(source) // CAPTIONS)), []
    with ThreadPoolExecutor() as threads, Counter(len(indices), "captions") as counter:
        for caption in threads.map(source.caption, indices):
            captions.append(caption)
            counter.add(1)
    if None in captions:
        raise UserError(NO_CAPTION)
    return captions


def _learned_text_model(condition: TextCondition, path: Path, source: Source) -> TextTokenizer:
    captions = _captions(source)
    text = TextTokenizer.train(captions, condition.vocabulary)
    text.encode(captions, condition.length)  # warns where captions are cut
    text.save(path)
    return text
