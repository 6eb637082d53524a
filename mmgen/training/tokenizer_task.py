"""Training a tokenizer: reconstruction, codebook and, if the losses ask for it, a discriminator (VQGAN, arXiv 2012.09841)."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import UInt8
from mmgen_tokenizers.api import family_of, shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import flatten
from mmgen_tokenizers.losses import discriminator_loss, generator_loss, lpips
from mmgen_tokenizers.networks import discriminator
from mmgen_tokenizers.pictures import grid, to_float, to_uint8, write_png
from mmgen_tokenizers.quantizers import vq

from mmgen.config import Data, Experiment
from mmgen.data import Source, batches
from mmgen.model.layers import compute_dtype
from mmgen.parallel.rules import by_shape, current_mesh, gathered
from mmgen.training.optimizer import adamw, has_matrix_axes, per_network, with_peak
from mmgen.training.state import Tree
from mmgen.training.tasks import opened, training_batches, validation_batches

SHOWN = 8  # pictures of a preview


class TokenizerTraining:
    """params {"model"[, "discriminator"]}; extra {"usage"[, "scales": usage of each, "candidates": latents that dead codes can
    restart from]}."""

    unit = ("pictures", 1)
    operations = None

    def __init__(self, experiment: Experiment):
        self.experiment, self.config, self.losses = experiment, experiment.task.model, experiment.task.losses
        self.family = family_of(self.config)[1]
        self.scales = _scales(self.family.layout(self.config, self.config.image_size, self.config.image_size))
        self.dtype = compute_dtype(experiment.compute_dtype)
        self.frozen = {"lpips": lpips.load(self.losses.lpips)} if self.losses.perceptual else {}

    @functools.cached_property
    def source(self) -> Source:
        return opened(self.experiment, "data")

    @functools.cached_property
    def held_out(self) -> Source | None:
        return opened(self.experiment, "validation") if self.experiment.validation else None

    def check(self) -> None:
        for name, source in (("data", self.source), ("validation", self.held_out)):
            if source is not None:
                _check(name, getattr(self.experiment, name), source[0], self.config.image_size)

    def optimizer(self, experiment: Experiment) -> optax.GradientTransformation:
        """One AdamW a network. The codebook does not decay; the discriminator does not either, for it waits at gradient 0."""
        chosen, steps = experiment.optimizer, experiment.steps
        networks = {"model": adamw(chosen, steps, _decayed)}
        if self.losses.adversarial:
            critic = replace(with_peak(chosen, experiment.task.discriminator_peak), weight_decay=0.0)
            networks["discriminator"] = adamw(critic, steps, has_matrix_axes)
        return per_network(networks)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        key_model, key_critic = jax.random.split(key)
        params = {"model": self.family.init(self.config, key_model)}
        if self.losses.adversarial:
            params["discriminator"] = discriminator.init(self.losses.discriminator, key_critic)
        quantizer = self.config.quantizer
        extra = {"usage": vq.start_usage(quantizer)}
        if self.scales:
            extra["scales"] = {name: vq.start_usage(quantizer) for name in self.scales}
        if self.experiment.task.revive_after is not None and "quantizer" in params["model"]:
            extra["candidates"] = jnp.zeros((quantizer.size, quantizer.dim))
        return params, extra

    def axes(self, params: Tree, mesh: Mesh) -> Tree:
        """Networks are split over replica and fsdp alone: devices along tensor and sequence do the same work."""
        return by_shape(params, mesh)

    def inherited(self) -> Tree:
        folder = self.experiment.task.start_from
        return {} if folder is None else {"model": _weights_of(folder, self.config)}

    def gradients(self, params, extra, frozen, batch, key, step):
        images = to_float(batch["image"])
        critic = self._critic(params)

        def loss(model: Tree):
            model = _whole(model)
            forward = self.family.forward(self.config, model, images, self.dtype, key)
            last_layer = self.family.last_layer(self.config, model, forward) if self.losses.adaptive else None
            value, metrics = generator_loss(
                self.losses, forward, images, step, critic=critic, last_layer=last_layer, lpips=frozen.get("lpips")
            )
            return value, (forward, metrics)

        grads, (forward, metrics) = jax.grad(loss, has_aux=True)(params["model"])
        grads = {"model": grads}
        if critic:
            grads["discriminator"], critic_metrics = self._critic_gradients(params, images, forward.reconstruction, step)
            metrics |= critic_metrics
        groups = self.config.quantizer.groups
        extra = {**extra, "usage": vq.update_usage(extra["usage"], forward.ids, groups)}
        if "candidates" in extra:
            extra["candidates"] = _some(forward.latents, self.config.quantizer.size)
        metrics |= vq.usage_metrics(extra["usage"], groups)
        if self.scales:
            extra["scales"] = {
                name: vq.update_usage(extra["scales"][name], forward.ids[:, part], groups) for name, part in self.scales.items()
            }
            metrics |= _scale_metrics(extra["scales"])
        return grads, extra, metrics

    def _critic(self, params: Tree) -> Callable | None:
        if not self.losses.adversarial:
            return None
        whole = _whole(params["discriminator"])
        return lambda images: discriminator.apply(self.losses.discriminator, whole, images, self.dtype)

    def _critic_gradients(self, params: Tree, images: jax.Array, reconstruction: jax.Array, step: jax.Array):
        def loss(critic: Tree):
            judge = self._critic({"discriminator": critic})
            return discriminator_loss(self.losses, judge, images, reconstruction, step)

        return jax.grad(loss, has_aux=True)(params["discriminator"])

    def after_update(self, params: Tree, extra: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        """Codes that were not used for long restart at latents of this batch."""
        if "candidates" not in extra:
            return params, extra
        after = self.experiment.task.revive_after * self.experiment.accumulate  # usage counts microbatches
        quantizer, usage = vq.revive(
            self.config.quantizer, params["model"]["quantizer"], extra["usage"], extra["candidates"], key, after
        )
        return {**params, "model": {**params["model"], "quantizer": quantizer}}, {**extra, "usage": usage}

    def weights(self, params: Tree) -> Tree:
        return params["model"]

    def validate(self, weights: Tree, extra: Tree, frozen: Tree, batch: Tree) -> dict[str, jax.Array]:
        """The losses without the discriminator's, which cannot be compared from step to step."""
        images = to_float(batch["image"])
        forward = self.family.forward(self.config, _whole(weights), images, self.dtype)
        still = replace(self.losses, adversarial=0.0)
        return generator_loss(still, forward, images, 0, lpips=frozen.get("lpips"))[1]

    def training_batches(self, start: int):
        return training_batches(self.experiment, self.source, start)

    @property
    def validation_batches(self) -> Callable | None:
        return (lambda: validation_batches(self.experiment, self.held_out)) if self.held_out else None

    def prepare(self, batch: dict) -> Tree:
        return {"image": batch["image"]}

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.config.image_size
        return {"image": jax.ShapeDtypeStruct((self.experiment.batch, size, size, 3), jnp.uint8)}

    def preview(self, weights: Tree, folder: Path, step: int) -> None:
        """Originals above their reconstructions."""
        tokenizer = mt.Tokenizer(self.config, weights)
        pictures = self._shown
        restored = tokenizer.decode(tokenizer.encode(pictures))
        folder.mkdir(exist_ok=True)
        both = np.concatenate([pictures, to_uint8(restored)])
        write_png(folder / f"step-{step:07d}.png", grid(both, columns=len(pictures)), {"step": str(step)})

    @functools.cached_property
    def _shown(self) -> UInt8[np.ndarray, "B H W 3"]:
        data, source = self.experiment.data, self.source
        if self.held_out:
            data, source = self.experiment.validation, self.held_out
        return next(batches(data, SHOWN, seed=0, repeat=False, source=source))["image"]

    def export(self, weights: Tree, folder: Path) -> None:
        mt.Tokenizer(self.config, weights).save(folder)


def _whole(params: Tree) -> Tree:
    """Each device computes with whole networks, on its own pictures; state and gradients stay in pieces."""
    mesh = current_mesh()
    return params if mesh is None else gathered(params, by_shape(params, mesh))


def _check(name: str, data: Data, example: dict, size: int) -> None:
    """Raises UserError where task and data do not fit."""
    if "image" not in example:
        raise UserError(f"a tokenizer is trained on pictures, and {name} are token shards")
    if data.size != size:
        raise UserError(f"{name}.size {data.size} is not task.model.image_size {size}: set both alike")


def _scales(layout: mt.TokenLayout) -> dict[str, slice]:
    """Where the ids of each scale stand, by its size; empty where there is one grid."""
    ends = layout.prefixes
    return {f"{h}x{w}": slice(end - h * w, end) for (h, w), end in zip(layout.scales, ends, strict=False)}


def _scale_metrics(usages: Tree) -> dict[str, jax.Array]:
    """ "usage/1x1", "perplexity/1x1" ...: a codebook collapses at the coarse scales first, which hold few of all the ids."""
    return {f"{name}/{scale}": value for scale, usage in usages.items() for name, value in vq.usage_metrics(usage).items()}


def _weights_of(folder: str, config: mt.VQGAN) -> Tree:
    """The weights of a tokenizer with the same network, for the start. It may lack phi of a multi-scale quantizer.

    Raises UserError that names what does not fit.
    """
    try:
        tokenizer = mt.load(folder)
    except UserError as error:
        raise UserError(f"task.start_from: {error}") from error
    there, here = _not_in_shapes(tokenizer.config), _not_in_shapes(config)
    for name in here:
        if there[name] != here[name]:
            raise UserError(f"task.start_from {folder}: {name} is {there[name]} there, not {here[name]}: set task.model alike")
    has, wants = (flatten(tree) for tree in (tokenizer.params, shapes(config)))
    for name in sorted(has.keys() | wants.keys()):
        sizes = [list(tree[name].shape) if name in tree else "nothing" for tree in (has, wants)]
        if sizes[0] != sizes[1] and (name in has or not name.startswith("quantizer.phi.")):
            raise UserError(f"task.start_from {folder}: {name} is {sizes[0]} there, task.model asks for {sizes[1]}")
    return jax.device_get(tokenizer.params)


def _not_in_shapes(config: mt.VQGAN) -> dict[str, object]:
    """What weights mean beyond their names and shapes."""
    whole = {name: getattr(config, name, None) for name in ("network", "range")}
    return whole | {"quantizer.normalize": getattr(config.quantizer, "normalize", None)}


def _decayed(model: Tree) -> Tree:
    mask = has_matrix_axes(model)
    if "quantizer" in mask:
        mask["quantizer"] = jax.tree.map(lambda _: False, mask["quantizer"])
    return mask


def _some(latents: jax.Array, count: int) -> jax.Array:
    """`count` latents of a batch [B, ..., C], in turn: float32 [count, C]."""
    rows = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)
    return rows[jnp.arange(count) % len(rows)]
