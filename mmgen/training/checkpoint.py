"""Checkpoints of a run: the newest, some between, the best by validation loss; written in the background, whole or not at all.

A checkpoint holds the state and the experiment as JSON; the position in the data is `state.step`. orbax writes into a
temporary folder and renames it when all is there, so a killed run finds its last complete one.
"""

import contextlib
import functools
import json
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array, UInt32
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import place
from orbax.checkpoint import checkpoint_managers as policies

from mmgen.parallel.distributed import all_say, first_process, in_turn
from mmgen.training.state import TrainState

CHECKSUM, METADATA = "checksum", "_CHECKPOINT_METADATA"


class AnotherModel(UserError):
    """A checkpoint that is whole, and not of this run."""


class Checkpoints:
    """The checkpoints in one folder, which may be one like gs://bucket/run.

    keep: how many of the newest stay, beside the one with the lowest validation loss and those whose step is a multiple of
    `keep_every` (0: none).
    """

    def __init__(self, folder: str | Path, keep: int, keep_every: int = 0):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs every rename; its errors reach us as exceptions
        place(folder)  # says what a bucket needs
        self.folder = epath.Path(folder if "://" in str(folder) else Path(folder).absolute())
        self._keep, self._keep_every = keep, keep_every
        self._pass_over_unfinished()
        self._manager = self._opened()

    def _opened(self) -> ocp.CheckpointManager:
        best = policies.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        some = [policies.EveryNSteps(self._keep_every)] if self._keep_every else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(max(self._keep, 1)), best, *some]),
            best_fn=_loss,  # the policy decides, but only with this does orbax write the figures
            best_mode="min",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=3600),
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=("state", "experiment", CHECKSUM))

    def reopen(self) -> None:
        """After a save that failed: what it left is removed, and what was complete stays."""
        with contextlib.suppress(Exception):  # the same failure again
            self._manager.close()
        self._manager = self._opened()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def all(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation loss."""
        return self._manager.best_step()

    def save(self, state: TrainState, experiment: dict, validation_loss: float | None) -> None:
        """Starts to write the state; returns when it is copied from the device. Errors of the previous one come up here."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                experiment=ocp.args.JsonSave(experiment),
                **{CHECKSUM: ocp.args.JsonSave({"bits": int(checksum(state))})},
            ),
            metrics={"loss": validation_loss} if validation_loss is not None and math.isfinite(validation_loss) else None,
        )

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of that checkpoint; `like` tells shapes, types and shardings (`abstract_state`), of any mesh.

        It is read in the types that were saved, which its checksum is of. Raises AnotherModel where shapes are others, and
        UserError where it is damaged.
        """
        folder, wanted = self.folder / str(step), {}
        if (folder / CHECKSUM).exists():  # runs that began before there were checksums have none
            wanted[CHECKSUM] = ocp.args.JsonRestore()
        try:
            wanted["state"] = ocp.args.StandardRestore(_as_stored(folder, like))
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
            if CHECKSUM in wanted and int(checksum(restored["state"])) != restored[CHECKSUM]["bits"]:
                raise ValueError("its numbers are not those that were saved")
        except Exception as error:
            if not isinstance(error, ValueError | KeyError | OSError) and type(error) is not Exception:
                raise
            raise _cannot_read(folder, error) from error  # orbax makes a plain Exception of what does not decompress
        return jax.tree.map(_taken_over, restored["state"], like)

    def restore_newest(self, like: TrainState) -> TrainState | None:
        """The newest state that can be read; None without any checkpoint. Damaged ones after it are named and put aside.

        Raises UserError where there are checkpoints and none can be read, or one is of another model: then nothing is moved.
        """
        damaged: dict[int, UserError] = {}
        for step in reversed(self.all()):
            state = None
            try:
                state = self.restore(step, like)
            except UserError as error:
                damaged[step] = error
            if all_say(state is not None):
                self._put_aside(damaged, step)
                return state
            damaged.setdefault(step, UserError(f"another process cannot read the checkpoint {self.folder / str(step)}"))
            if isinstance(damaged[step], AnotherModel):
                raise damaged[step]
        if damaged:
            raise damaged[max(damaged)]
        return None

    def _pass_over_unfinished(self) -> None:
        """Puts steps aside whose files of figures cannot be read, which orbax does before anybody asks for the step."""
        with in_turn():
            errors = {int(path.name): _unreadable(path) for path in self.folder.glob("*") if path.name.isdigit()}
            good = max((step for step, error in errors.items() if error is None), default=None)
            damaged = {}
            for step, error in errors.items():
                if error and good and step < good and not (self.folder / str(step) / METADATA).exists():
                    (self.folder / str(step)).rmtree()  # a kill came while an old checkpoint was being removed
                elif error:
                    damaged[step] = error
            if damaged and good is None:
                raise damaged[max(damaged)]
            _put_aside(self.folder, damaged, good)

    def _put_aside(self, damaged: dict[int, UserError], good: int) -> None:
        with in_turn():
            if first_process():
                _put_aside(self.folder, damaged, good)
        if damaged:
            self._manager.reload()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._manager.close()


@jax.jit
def checksum(state: TrainState) -> UInt32[Array, ""]:
    """Of the bits of all arrays, the same on any mesh: a file can change without the file's format noticing it."""

    def bits(x: Array) -> UInt32[Array, ""]:
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return words.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return sum(((2 * i + 1) * bits(x) for i, x in enumerate(jax.tree.leaves(state))), jnp.uint32(0))


def _as_stored(folder: epath.Path, like: TrainState) -> TrainState:
    """`like` with the types that the arrays of a checkpoint have. Raises AnotherModel where names or shapes are others."""
    metadata = ocp.StandardCheckpointHandler().metadata(folder / "state")
    stored, wanted = ocp.tree.to_flat_dict(metadata.tree), ocp.tree.to_flat_dict(like)
    for name in sorted(stored.keys() | wanted.keys(), key=lambda name: (name[0] != "params", name)):
        there, here = (list(arrays[name].shape) if name in arrays else "nothing" for arrays in (stored, wanted))
        if there != here:
            raise AnotherModel(
                f"{folder} holds another model ({'.'.join(name)} is {there} there, {here} here): give this run another "
                "--checkpoints, or start it with the settings of the run that saved them"
            )
    leaves = [jax.ShapeDtypeStruct(x.shape, stored[name].dtype, sharding=x.sharding) for name, x in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _taken_over(read: Array, like: jax.ShapeDtypeStruct) -> Array:
    """A copy in the wanted type, made by XLA: arrays that come from a file cannot always be donated, which costs a second state
    in memory. What was read goes at once: of all of the state there are never two."""
    copied = jax.block_until_ready(_copy(like.dtype, like.sharding)(read))
    read.delete()
    return copied


@functools.cache
def _copy(dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> Callable[[Array], Array]:
    return jax.jit(lambda x: jnp.copy(x.astype(dtype)), out_shardings=sharding)


def _cannot_read(folder: epath.Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"cannot read the checkpoint {folder} ({reason}): it is damaged, or of another version")


def _unreadable(folder: epath.Path) -> UserError | None:
    """What is wrong with the small files of a step; None where they are whole."""
    try:
        for path in (folder / METADATA, *folder.glob("metrics/metrics")):
            json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return _cannot_read(folder, error)
    return None


def _put_aside(folder: epath.Path, damaged: dict[int, UserError], good: int) -> None:
    """Renames what would stand in the way of the run's next checkpoints, and names it."""
    for step, error in damaged.items():
        free = (folder / f"damaged-{step}{suffix}" for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
        aside = next(path for path in free if not path.exists())
        (folder / str(step)).rename(aside)
        warnings.warn(f"{error}; moved it to {aside.name}, continuing from step {good}", stacklevel=3)


def _loss(figures: dict[str, float]) -> float:
    return figures["loss"]
