"""How likely pictures are to a model that can say so exactly: bits a picture, and where tokens are the pixels themselves bits a
dimension, the number by which density models of pictures are compared (arXiv 1601.06759)."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation.processes import gather, own
from mmgen_tokenizers.evaluation.results import Result
from mmgen_tokenizers.evaluation.statistics import interval
from mmgen_tokenizers.families.pixels import Pixels
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.pictures import fit
from mmgen_tokenizers.progress import Counter
from mmgen_tokenizers.streaming import groups

from mmgen import __version__
from mmgen.config import Data, TokenShards
from mmgen.data import Replacing, open_source, parse_source
from mmgen.evaluation.generated import fingerprint
from mmgen.folders import step_of
from mmgen.generator import Generator, load
from mmgen.model.config import ClassCondition, FeatureCondition, Masked, TextCondition
from mmgen.parallel.distributed import first_process

ROWS = 32  # pictures a device computes at once
ORDER = 0  # seed of the order of the pictures, so that the first ones are of all kinds


def evaluate(
    folder: str | Path,
    data: str,
    out: str | Path,
    num: int | None = None,
    data_dir: str | None = None,
    dtype: str | None = None,
    tensor: int = 1,
) -> Result | None:
    """Writes OUT/evaluation.json: the mean over `num` pictures (all) of the set that `data` names (see `parse_source`), each
    under its own label or caption, before guidance and temperature. Of a picture whose shape is not the model's the middle
    square is scaled; of token shards the first crop is taken.

    Of several processes each computes its share, and all but the first return None. Raises UserError for masked models, and for
    data that do not fit.
    """
    generator = load(folder, dtype, tensor)
    source, size = _opened(generator, data, data_dir), _size(generator)
    order = np.random.default_rng(ORDER).permutation(len(source))[:num]
    bits, coloured, replaced = _measured(generator, source, order, size).T
    if not first_process():
        return None
    found = figures(generator, bits, bool(coloured.any()))
    result = {"figures": found, "pictures": len(bits), "likelihood": {"from": data, "size": size}}
    result |= {
        "model": str(folder),
        "step": step_of(folder),
        "fingerprint": fingerprint(generator),
        "dtype": str(np.dtype(generator.dtype)),
    }
    result |= {"condition": "captions" if isinstance(generator.config.condition, TextCondition) else "labels"}
    result |= {"replaced": int(replaced.sum()), "versions": {"mmgen": __version__, "jax": jax.__version__}}
    write_json(Path(out) / "evaluation.json", result)
    return result


def dimensions(generator: Generator) -> int | None:
    """Numbers in a picture, where the tokens are those: else a token's probability is not that of its pixels."""
    tokenizer, layout = generator.tokenizer, generator.config.layout
    lossless = tokenizer is not None and isinstance(tokenizer.config, Pixels) and not tokenizer.config.palette
    return layout.sites * layout.groups if lossless else None


def figures(generator: Generator, bits: Float[np.ndarray, " N"], coloured: bool = True) -> dict[str, dict[str, Any]]:
    """Means with bootstrap intervals, from the bits of each picture. Of grey ones, whose channels are all the same, a dimension
    is a pixel: that is how published numbers of such sets count."""
    found = {
        "bits_per_picture": bits,
        "bits_per_token": bits / (generator.config.layout.sites * generator.config.layout.groups),
    }
    if (count := dimensions(generator)) is not None:
        if not coloured:
            count //= generator.config.layout.groups
            warnings.warn(f"the channels of each picture are equal: bits a dimension are of {count} pixels", stacklevel=2)
        found = {"bits_per_dimension": bits / count, "bits_per_picture": bits}
    told = {name: {"value": float(x.mean()), "interval": list(interval(float(x.mean()), x))} for name, x in found.items()}
    if count is not None:
        told["bits_per_dimension"]["dimensions"] = count
    return told


def _measured(generator: Generator, source: Replacing, order: Sequence[int], size: int) -> Float[np.ndarray, "N 3"]:
    """Of each picture, in the order given: its bits, whether its channels differ, whether it stands for a damaged one."""
    rows, condition = ROWS * jax.local_device_count(), generator.config.condition
    name, key = ("labels", "label") if isinstance(condition, ClassCondition) else ("prompts", "text")
    starts = list(own(range(0, len(order), rows)))
    mine = [int(index) for start in starts for index in order[start : start + rows]]
    found = []
    with Counter(len(mine), "pictures") as counter:
        for examples in groups(lambda place: _example(source, mine[place], size), len(mine), rows):
            tokens = _tokens(generator, examples)
            bits = -generator.log_likelihood(tokens, **{name: [example[key] for example in examples]}) / np.log(2)
            coloured = (tokens != tokens[..., :1]).reshape(len(tokens), -1).any(1)
            found.append(np.stack([bits, coloured, [example["replaced"] for example in examples]], 1))
            counter.add(len(examples))
    return np.concatenate(gather(found, np.float64))


def _example(source: Replacing, index: int, size: int) -> dict[str, Any]:
    example = dict(source[index])
    example["replaced"] = index in source.damaged
    return example | ({"image": fit(example["image"], size)} if "image" in example else {"ids": example["ids"][0]})


def _tokens(generator: Generator, examples: Sequence[dict[str, Any]]) -> np.ndarray:
    if "ids" in examples[0]:
        return np.stack([example["ids"] for example in examples])
    return generator.tokenizer.encode(np.stack([example["image"] for example in examples]))


def _size(generator: Generator) -> int | None:
    return generator.tokenizer and generator.tokenizer.config.image_size


def _opened(generator: Generator, data: str, data_dir: str | None) -> Replacing:
    """The source. Raises UserError, before anything is computed, where model and data do not fit."""
    condition = generator.config.condition
    if isinstance(generator.config.plan, Masked):
        raise UserError("a masked model predicts tokens in no order, so it gives no likelihood: take one of another plan")
    if isinstance(condition, FeatureCondition):
        raise UserError("this model reads features of a text model, which data do not hold: call its log_likelihood yourself")
    spec = Data(parse_source(data, data_dir), size=_size(generator) or 0)
    shards = isinstance(spec.source, TokenShards)
    if generator.tokenizer is None and not shards:
        raise UserError("this model has no tokenizer to encode pictures with: convert it again with --tokenizer DIR")
    source = open_source(spec, captioned=isinstance(condition, TextCondition))
    if shards:
        _check_shards(generator, source, data)
    wanted = "label" if isinstance(condition, ClassCondition) else "text"
    if wanted not in source[0]:
        raise UserError(f"the model reads a {wanted} with each picture, and {data} has none")
    if source.labels and generator.labels and tuple(source.labels) != generator.labels:
        raise UserError(f"{data} has other classes than the model, or in another order: {', '.join(source.labels[:5])} ...")
    return source


def _check_shards(generator: Generator, source: Replacing, data: str) -> None:
    reader, tokenizer = source.source.reader, generator.tokenizer
    if reader.layout != generator.config.layout:
        raise UserError(f"{data} holds tokens of {reader.layout}, the model reads {generator.config.layout}")
    if tokenizer is not None and tokenizer.fingerprint != reader.tokenizer:
        raise UserError(f"{data} was made by tokenizer {reader.tokenizer}, the model's is {tokenizer.fingerprint}")
