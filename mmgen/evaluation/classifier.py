"""An independent judge of class-conditional models: a small CNN that is trained on the real pictures.

It sees nothing of the tokenizer or the generator. How many samples it recognises as the class that was asked for says
whether the condition is obeyed; its accuracy on real test pictures says how far it can be trusted. The Frechet distance in its
own features is called FCD, never FID: numbers of two classifiers do not compare.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation.statistics import Moments, frechet_influence, interval
from mmgen_tokenizers.pictures import to_float, to_uint8
from mmgen_tokenizers.progress import Counter

from mmgen.generator import Generator
from mmgen.report import Card

CHUNK = 500  # pictures classified at once
CHANNELS = (32, 64, 128)  # of the network's convolutions


class Network(nnx.Module):
    """Patches of 2 x 2 as channels, then three convolutions that each halve the resolution, then two dense layers."""

    def __init__(self, size: int, classes: int, rngs: nnx.Rngs):
        pairs = itertools.pairwise((12, *CHANNELS))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in pairs])
        self.hidden = nnx.Linear(CHANNELS[-1] * (size // 16) ** 2, 128, rngs=rngs)
        self.out = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, pictures: Float[Array, "B H W 3"]) -> Float[Array, "B classes"]:
        return self.out(self.features(pictures))

    def features(self, pictures: Float[Array, "B H W 3"]) -> Float[Array, "B 128"]:
        B, H, W, _ = pictures.shape
        x = pictures.reshape(B, H // 2, 2, W // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, H // 2, W // 2, 12)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return jax.nn.relu(self.hidden(x.reshape(B, -1)))


class Classifier:
    """A trained network: pictures -> labels."""

    def __init__(self, graph: nnx.GraphDef, params: dict):
        self._graph, self._params = graph, params

    def __call__(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B"]:
        return self._all(pictures)[1]

    def features(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B 128"]:
        """What the last layer reads."""
        return self._all(pictures)[0]

    def _all(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> list[np.ndarray]:
        starts = range(0, len(pictures), CHUNK)
        pieces = [_found(self._graph, self._params, pictures[start : start + CHUNK]) for start in starts]
        return [np.concatenate(column) for column in zip(*pieces, strict=True)]


@functools.partial(jax.jit, static_argnames="graph")
def _found(
    graph: nnx.GraphDef, params: dict, pictures: UInt8[Array, "B H W 3"]
) -> tuple[Float[Array, "B 128"], Int[Array, " B"]]:
    network = nnx.merge(graph, nnx.State(params))
    features = network.features(to_float(pictures))
    return features, jnp.argmax(network.out(features), -1)


def fcd(
    classifier: Classifier, samples: UInt8[np.ndarray, "N H W 3"], reference: UInt8[np.ndarray, "M H W 3"]
) -> dict[str, Any]:
    """Frechet distance between two sets in the classifier's features, and its bootstrap interval. Warns of too few samples."""
    features = classifier.features(samples)
    if len(features) <= features.shape[1]:
        told = f"{len(features)} pictures for {features.shape[1]} features: the covariance has not full rank"
        warnings.warn(f"{told} and FCD is far too high: draw more", stacklevel=2)
    a, b = (Moments.of(x).gaussian for x in (features, classifier.features(reference)))
    value, influence = frechet_influence(features, a, b)
    return {"value": value, "interval": list(interval(value, influence))}


def blurred(pictures: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
    """Each pixel the mean of the 5 x 5 around it; a yardstick for distances."""
    (H, W), width = pictures.shape[1:3], 5
    around = ((0, 0), *[(width // 2, width // 2)] * 2, (0, 0))
    wide = np.pad(pictures.astype(np.float32), around, "edge")
    total = sum(wide[:, i : i + H, j : j + W] for i in range(width) for j in range(width))
    return np.rint(total / width**2).astype(np.uint8)


def train_classifier(
    batches: Iterator[dict[str, Any]], classes: int, size: int, steps: int = 2500, peak: float = 2e-3
) -> Classifier:
    """Trains on `steps` batches with "image" uint8 [B, size, size, 3] and "label".

    `size` must be a multiple of 16. Raises UserError at a label that is not one of the classes.
    """
    graph, params = nnx.split(Network(size, classes, nnx.Rngs(0)), nnx.Param)
    params = nnx.to_pure_dict(params)
    optimizer = _optimizer(steps, peak)
    state = optimizer.init(params)
    with Counter(steps, "steps of the classifier") as counter:
        for batch in itertools.islice(batches, steps):
            if batch["label"].min() < 0 or batch["label"].max() >= classes:
                raise UserError(f"the data have label {batch['label'].max()}, and there are {classes} classes")
            params, state = _step(graph, optimizer, params, state, batch["image"], batch["label"])
            counter.add(1)
    return Classifier(graph, params)


@functools.cache  # so that classifiers which are trained alike share a program
def _optimizer(steps: int, peak: float) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_onecycle_schedule(steps, peak), weight_decay=1e-4)


@functools.partial(jax.jit, static_argnames=("graph", "optimizer"))
def _step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    params: dict,
    state: optax.OptState,
    pictures: UInt8[Array, "B H W 3"],
    labels: Int[Array, " B"],
) -> tuple[dict, optax.OptState]:
    def loss(params: dict) -> Array:
        logits = nnx.merge(graph, nnx.State(params))(to_float(pictures))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def recognised(
    generator: Generator, classify: Callable[[np.ndarray], np.ndarray], count: int = 500, seed: int = 0, **settings
) -> tuple[UInt8[np.ndarray, "count H W 3"], Int[np.ndarray, "count"], Bool[np.ndarray, "count"]]:
    """Samples by the recommended settings, the classes in turn: pictures, labels asked for, and which are recognised."""
    labels = np.arange(count) % generator.null_label
    pictures = to_uint8(generator.generate(labels=labels, seed=seed, **settings).images)
    return pictures, labels, classify(pictures) == labels


def cards(
    pictures: UInt8[np.ndarray, "count H W 3"],
    labels: Int[np.ndarray, "count"],
    right: Bool[np.ndarray, "count"],
    names: Sequence[str],
) -> list[Card]:
    """What `recognised` gives as cards of a report; `names` of the classes."""
    return [
        Card([picture], names[label], bool(ok), "recognised" if ok else "not recognised")
        for picture, label, ok in zip(pictures, labels, right, strict=True)
    ]
