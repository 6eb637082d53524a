"""From a published state_dict to a configuration and parameters: what the families of convolutional tokenizers share.

Names and shapes say most of a configuration. What the user's `config` adds are settings that no tensor shows, and claims,
which are checked against the tensors.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..api import Config, Tokenizer, shapes
from ..errors import UserError, nearest
from ..families.vqgan import VQGAN
from ..files import Row, flatten, read_checkpoint, rename, unflatten
from ..networks.cnn import CNN

State = Mapping[str, np.ndarray]


def settings(
    family: str, config: Mapping[str, Any] | None, defaults: Mapping[str, Any], claims: Iterable[str], ignored: Sequence[str]
) -> dict[str, Any]:
    """`defaults` overridden by the user's config, whose sections (taming's "ddconfig") are opened.

    `claims` are keys that `agree` checks. Warns of keys that are `ignored`, by name; raises UserError at any other, and at a
    value of another kind than its default.
    """
    if not isinstance(config or {}, Mapping):
        raise UserError(f"{family}: the config must be an object of keys and values, not {config!r}")
    known, given = {*defaults, *claims, *ignored}, {}
    for key, value in (config or {}).items():
        opened = isinstance(value, Mapping) and key not in known
        given |= value if opened else {key: value}
    for key in given:
        if key not in known:
            raise UserError(f"{family}: unknown config key {key!r}.{nearest(key, known)} Known: {', '.join(sorted(known))}")
        if key in defaults:
            _check_kind(f"{family}: config {key}", given[key], defaults[key])
    if unused := [key for key in given if key in ignored]:
        warnings.warn(f"{family} ignores the config keys {', '.join(unused)}", stacklevel=3)
    return {**defaults, **given}


def _check_kind(what: str, value: Any, default: Any) -> None:
    """Raises UserError unless the value is the default or like it. None stands for what the weights or the size say."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    fits, kind = {
        bool: (isinstance(value, bool), "true or false"),
        int: (whole, "a whole number from 1 on"),
        float: (isinstance(value, int | float) and not isinstance(value, bool), "a number"),
        str: (isinstance(value, str), "a text"),
        tuple: (isinstance(value, list | tuple) and all(isinstance(item, int) for item in value), "a list of whole numbers"),
        type(None): (whole, "a whole number from 1 on"),
    }[type(default)]
    if value is not default and not fits:
        raise UserError(f"{what} is {value!r}, but must be {kind}")


def agree(family: str, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises UserError where the settings claim something else than was found. A set in `found` has no order."""
    for key, shown in found.items():
        claim = given.get(key, shown)
        claim = type(shown)(claim) if isinstance(claim, list | tuple) and isinstance(shown, tuple | set) else claim
        if claim != shown:
            raise UserError(f"{family}: the config has {key} {given[key]}, but here it is {shown}: leave it out")


def parameters(family: str, state: State, table: list[Row], needed: Iterable[str]) -> dict[str, np.ndarray]:
    """The state_dict under our flat names, whatever it holds. Raises UserError where it lacks one of `needed`."""
    for name in needed:
        if name not in state:
            holds = ", ".join(list(state)[:3])
            raise UserError(f"the checkpoint has no {name}: is it a tokenizer of {family}? It holds {holds} ...")
    return rename(state, table, None)


def network(flat: Mapping[str, np.ndarray], extra: int, **switches: Any) -> CNN:
    """The network whose encoder these parameters show; the decoder must then fit it.

    `extra`: by how many blocks a level of the decoder is longer; `switches`: what names and shapes do not show.
    """
    channels, last = flat["encoder.conv_in.kernel"].shape[-1], flat["encoder.conv_out.kernel"]
    levels, blocks = range(count(flat, "encoder.levels.")), count(flat, "encoder.levels.0.blocks.")
    return CNN(
        channels=channels,
        multipliers=tuple(flat[f"encoder.levels.{i}.blocks.0.conv2.kernel"].shape[-1] // channels for i in levels),
        encoder_blocks=blocks,
        decoder_blocks=blocks + extra,
        attention_levels=tuple(i for i in levels if f"encoder.levels.{i}.attention.0.out.kernel" in flat),
        middle_blocks=count(flat, "encoder.middle.blocks."),
        middle_attention="encoder.middle.attention.out.kernel" in flat,
        bias="encoder.conv_in.bias" in flat,
        latent=last.shape[-1],
        latent_kernel=1 if last.ndim == 2 else 3,
        **switches,
    )


def count(names: Iterable[str], start: str) -> int:
    """How many different numbers follow `start` in the names."""
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def fitted(config: Config, state: State, table: list[Row]) -> dict[str, Any]:
    """A state_dict -> our parameters. Raises UserError listing tensors that are missing, extra or of another shape."""
    expected = {name: leaf.shape for name, leaf in flatten(shapes(config)).items()}
    return unflatten(rename(state, table, expected))


def averaged(state: State) -> dict[str, np.ndarray]:
    """The model in a checkpoint of taming's line, without its losses: of each weight the moving average, if one is kept.

    Those codes evaluate the average; it is stored beside the weights, "a.b.c" as "model_ema.abc".
    """
    model = {name: array for name, array in state.items() if not name.startswith(("loss.", "model_ema."))}
    means = {name: state.get("model_ema." + name.replace(".", "")) for name in model}
    absent = [name for name, mean in means.items() if mean is None]
    if len(absent) == len(model):
        return model
    if absent:
        raise UserError(f"the checkpoint keeps moving averages, but none of {', '.join(absent[:3])}: it is damaged or edited")
    return means


def converted(
    family: str,
    configure: Callable[[Mapping[str, Any] | None, State], VQGAN],
    table: list[Row],
    checkpoint: str | Path,
    config: Mapping[str, Any] | None,
) -> Tokenizer:
    """A checkpoint file of taming's line -> Tokenizer."""
    state = averaged(read_checkpoint(checkpoint))
    ours = configure(config, state)
    return Tokenizer(ours, fitted(ours, state, table), family)
