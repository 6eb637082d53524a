"""A generator scored by a protocol: its pictures are drawn in pieces, each written once, and then compared with a reference."""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from mmgen_tokenizers.configs import to_json
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation.protocols import Protocol, draw_labels, finish, named
from mmgen_tokenizers.evaluation.results import Result, check_reference, score
from mmgen_tokenizers.evaluation.sets import open_pictures
from mmgen_tokenizers.files import flatten, read_json, write_atomically, write_json
from mmgen_tokenizers.pictures import to_uint8
from mmgen_tokenizers.progress import Counter

from mmgen import __version__
from mmgen.folders import step_of
from mmgen.generator import Generator, load
from mmgen.model.config import ClassCondition
from mmgen.parallel.distributed import all_say, first_process

PIECE = 256  # pictures of a file


def evaluate(
    folder: str | Path,
    reference: str | Path,
    weights: str | Path,
    out: str | Path,
    protocol: str | None = None,
    num: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    tensor: int = 1,
    statistics: str | Path | None = None,
    **settings,
) -> Result | None:
    """Draws the set that a protocol asks for into OUT/pictures, scores it and writes OUT/evaluation.json.

    Without a `protocol`: `num` pictures in the model's own size, as many of each class. Started again it goes on where it was.
    All devices share the work; of several processes each draws its share, on one disk that all see, and all but the first one
    return None.
    `settings` of `Generator.generate` take the place of the protocol's. `weights`: of InceptionV3.
    """
    generator, out = load(folder, dtype, tensor), Path(out)
    if protocol is None and num is None:
        raise UserError("name a --protocol, or say with --num how many pictures to draw by the model's own settings")
    chosen = own(generator, num) if protocol is None else named(protocol)
    check(generator, chosen, protocol)
    size = (chosen.size, chosen.size)
    check_reference(reference, weights, size, chosen.crop, statistics)
    record, _ = draw_classes(generator, out, chosen, num or chosen.pictures, seed, settings)
    found = score(out / "pictures", reference, weights, size, chosen.crop, statistics)
    if not first_process():
        return None
    found["versions"] |= {"mmgen": __version__}
    found |= {"model": str(folder), "step": step_of(folder), "protocol": protocol, "record": record}
    found |= {"labels": generator.labels}
    write_json(out / "evaluation.json", found)
    return found


def own(generator: Generator, num: int) -> Protocol:
    """`num` pictures in the model's own size, as many of each class."""
    size = generator.tokenizer.config.image_size if generator.tokenizer else 0
    return Protocol("the model's own settings", "as given", num, size, labels="each")


def check(generator: Generator, protocol: Protocol, name: str | None) -> None:
    """Raises UserError, before anything is drawn, for a model that the protocol cannot be followed with."""
    if protocol.labels is None:
        raise UserError(f"the protocol {name} is for tokenizers: mmgen-tokenizers evaluate")
    if generator.tokenizer is None:
        raise UserError("this model has no tokenizer to draw pictures with: convert it again with --tokenizer DIR")
    if not isinstance(generator.config.condition, ClassCondition):
        raise UserError("protocols draw classes and this model takes texts: draw with mmgen sample --npz, score with --samples")
    size = generator.tokenizer.config.image_size
    if size != protocol.size and protocol.resize == "none":
        raise UserError(f"the model draws {size} x {size} pixels, the protocol {name} is of {protocol.size} x {protocol.size}")


def draw_classes(
    generator: Generator, out: Path, protocol: Protocol, count: int, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], Int[np.ndarray, " count"]]:
    """`draw` by a protocol: the record, and the class of each picture. `settings` that are not None take the place of the
    protocol's."""
    sampling = dict(protocol.sampling) | {name: value for name, value in settings.items() if value is not None}
    record = describe(generator, count, seed, dataclasses.asdict(protocol), sampling)
    labels = draw_labels(protocol, generator.null_label, count, seed)
    draw(generator, out, record, "labels", labels, sampling, functools.partial(finish, protocol))
    return record, labels


def draw_prompts(
    generator: Generator, out: Path, prompts: Sequence[str], seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """`draw` for each of `prompts`; `settings` that are not None go to `Generator.generate`. Returns the record."""
    sampling = {name: value for name, value in settings.items() if value is not None}
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    record = describe(generator, len(prompts), seed, {}, sampling) | {"prompts": digest}
    draw(generator, out, record, "prompts", prompts, sampling, to_uint8)
    return record


def describe(generator: Generator, count: int, seed: int, protocol: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    """Everything that the pictures depend on, as JSON. `sampling`: over the recommended settings."""
    plain = {"model": fingerprint(generator), "dtype": str(np.dtype(generator.dtype)), "pictures": count, "seed": seed}
    settings = dataclasses.asdict(generator.sampling) | sampling
    return json.loads(json.dumps(plain | {"sampling": settings, "protocol": protocol}))


def fingerprint(generator: Generator) -> str:
    """16 hexadecimal digits of the model, its weights and its tokenizer, if it has one."""
    digest = hashlib.sha256(json.dumps(to_json(generator.config), sort_keys=True).encode())
    for name, value in sorted(flatten(generator.params).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).data)
    digest.update(generator.tokenizer.fingerprint.encode() if generator.tokenizer else b"")
    return digest.hexdigest()[:16]


def draw(
    generator: Generator,
    out: Path,
    record: dict[str, Any],
    name: str,
    values: Sequence[Any],
    sampling: dict[str, Any],
    rounded: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Writes the pieces of OUT/pictures that are not there yet, each a file as ADM's evaluator reads it.

    `values`: of each picture, for `generate`'s argument `name`; `rounded` makes uint8 of what it gives. Each process draws its
    share: a picture does not depend on which one draws it (in float32).
    """
    folder = out / "pictures"
    if first_process():
        begin(out, record)
    all_say(True)  # that everyone sees the same files before the first new one
    firsts = [first for first in range(0, len(values), PIECE) if not (folder / f"{first:08d}.npz").is_file()]
    mine = np.array_split(firsts, jax.process_count())[jax.process_index()].tolist()
    with Counter(sum(len(values[first : first + PIECE]) for first in mine), "pictures") as counter:
        for run in _runs(mine, max(1, generator.rows_at_once // PIECE)):
            own = values[run[0] : run[-1] + PIECE]
            made = generator.generate(**{name: own}, seed=record["seed"], first_index=run[0], **sampling)
            pictures = rounded(made.images)
            for start in range(0, len(own), PIECE):
                end = start + PIECE
                _write(folder / f"{run[0] + start:08d}.npz", pictures[start:end], own[start:end])
            counter.add(len(own))
    all_say(True)  # that all pieces are there


def _runs(firsts: Sequence[int], most: int) -> Iterator[list[int]]:
    """Pieces that follow each other, `most` at a time: what all devices draw at once."""
    run: list[int] = []
    for first in firsts:
        if run and (len(run) == most or first != run[-1] + PIECE):
            yield run
            run = []
        run.append(first)
    if run:
        yield run


def drawn(out: Path) -> UInt8[np.ndarray, "N H W 3"]:
    """All pictures that `draw` wrote, in their order."""
    return np.concatenate(list(open_pictures(out / "pictures").batches(PIECE)))


def begin(out: Path, record: dict[str, Any]) -> None:
    """Notes what is being drawn. Raises UserError where OUT holds something else."""
    if not (out / "record.json").is_file():
        write_json(out / "record.json", record)
        return
    before = read_json(out / "record.json")
    other = [name for name in record if before.get(name) != record[name]]
    if other:
        told = ", ".join("number" if name == "pictures" else name for name in other)
        raise UserError(f"{out} holds pictures of another {told}: choose another --out, or delete it")


def _write(path: Path, pictures: np.ndarray, values: Sequence[Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, pictures, np.asarray(values))  # arr_0 and arr_1, as ADM names them
    write_atomically(path, buffer.getvalue())
