"""The plan-driven decode loop: slots in time order over a static cache, sites sampled as their time comes.

Slots are laid out in time order, so the slots of a step are a window [first, first + width). Steps of nearly equal width share
one loop; where a window is wider than its step, the slots behind it are computed too early, are seen by nobody, and are
overwritten when their own time comes. A long loop is cut into pieces, before each of which the cache grows by what the piece
writes: the slots that come later are not read all the time.
"""

import functools
import itertools
import operator
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from mmgen.decoding.target import Filter, noise, target
from mmgen.model.attention import attend_cached
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import TurnedHead, choose, turn
from mmgen.model.inputs import Slots
from mmgen.model.kv_cache import Cache, bytes_per_row, empty_cache, moved, write
from mmgen.model.layers import FusedBlock, fuse
from mmgen.model.positions import rotary_angles
from mmgen.model.transformer import (
    block_axes,
    build_plan,
    cast,
    combine_with,
    ends_axes,
    ends_of,
    layer_of,
    plan_batch,
    slots_of,
)
from mmgen.parallel.mesh import placed
from mmgen.plan.plan import PADDING, GenerationPlan

MAX_PADDING = 1.25  # computed slots over needed slots within one loop
PIECE, PIECES = 128, 4  # about so many slots between two sizes of the cache; so many loops are compiled at most for one width


class Segment(NamedTuple):
    """Consecutive steps that share one loop body; arrays have a row a step, beginning at time `start`."""

    start: int
    stop: int
    width: int  # F: slots computed a step
    first: Int[np.ndarray, "t"]  # the window's first slot
    site: Int[np.ndarray, "t e"]  # sites sampled; N where there are fewer than E
    slot: Int[np.ndarray, "t e k"]  # combine_slot within the window
    head: Int[np.ndarray, "t e k"]
    weight: np.ndarray  # [T, E, K]

    @property
    def room(self) -> int:
        """Slots that are computed when it ends."""
        return int(self.first[-1]) + self.width


class Carry(NamedTuple):
    tokens: Int[Array, "b n1 ..."]  # N + 1 columns: the last takes what padded sites would write
    cache: Cache
    valid: Bool[Array, "r z"]  # R = B rows, or 2 B with guidance: conditional rows, then unconditional ones
    index: Int[Array, "b"]  # sample indices, for the noise
    time: Int[Array, ""]  # the next step


class Settings(NamedTuple):
    guidance: Array  # [T]
    temperature: Array
    top_p: Array
    choice_temperature: Array | None = None  # of masked prediction


class Request(NamedTuple):
    """What a decoder is given: all but `which` are arguments of the jitted program."""

    params: dict  # of decode_params
    batch: dict  # the condition of all rows, guided pairs included
    index: Int[Array, "b"]  # sample indices, for the noise
    key: PRNGKeyArray
    settings: Settings
    which: Filter


def schedule(plan: GenerationPlan) -> list[Segment]:
    """Step 0 with the condition, then runs of steps whose padding stays below MAX_PADDING."""
    times = np.maximum(plan.reads, 0)
    widths = np.bincount(times, minlength=plan.times)
    runs, start = [(0, 1)], 1
    for stop in range(2, plan.times + 2):
        group = widths[start : min(stop, plan.times)]
        if stop > plan.times or group.max() * len(group) > MAX_PADDING * group.sum():
            if start < plan.times:
                runs.append((start, stop - 1))
            start = stop - 1
    return [_segment(plan, times, widths, *piece) for run in runs for piece in _pieces(widths, *run)]


def _pieces(widths: Int[np.ndarray, "t"], start: int, stop: int) -> Iterator[tuple[int, int]]:
    count = min(round(int(widths[start:stop].sum()) / PIECE), PIECES, stop - start)
    return itertools.pairwise(np.linspace(start, stop, max(1, count) + 1).astype(int).tolist())


def _segment(plan: GenerationPlan, times: np.ndarray, widths: np.ndarray, start: int, stop: int) -> Segment:
    steps = range(start, stop)
    sites = [np.flatnonzero(plan.site_time == t) for t in steps]
    first = np.array([np.searchsorted(times, t) for t in steps])
    rows = np.full((len(steps), max(map(len, sites))), plan.sites)
    for row, found in zip(rows, sites, strict=True):
        row[: len(found)] = found
    real = np.minimum(rows, plan.sites - 1)
    slot = np.where(rows[..., None] < plan.sites, plan.combine_slot[real] - first[:, None, None], 0)
    return Segment(
        start, stop, int(widths[start:stop].max()), first, rows, slot, plan.combine_head[real], plan.combine_weight[real]
    )


def decode_params(c: GeneratorConfig, params: dict, dtype: jnp.dtype, mesh: Mesh | None = None) -> dict:
    """Training parameters -> {"ends" with turned heads, "layers": a list of fused layers}: once, when a model is loaded. One
    layer after the other, so that no device holds all weights twice; in pieces where the mesh splits them."""
    after, ends = decode_axes(c), placed(mesh, ends_axes(c), params["ends"])
    made = {"ends": placed(mesh, after["ends"], _decode_ends(c, ends, dtype)), "layers": []}
    for i, names in enumerate(after["layers"]):
        layer = placed(mesh, block_axes(c), jax.tree.map(operator.itemgetter(i), params["blocks"]))
        made["layers"].append(placed(mesh, names, _decode_layer(c, layer, dtype)))
    return made


def decode_axes(c: GeneratorConfig) -> dict:
    """Logical axis names of what `decode_params` gives."""
    return {"ends": ends_axes(c, TurnedHead), "layers": [block_axes(c, FusedBlock)] * c.layers}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _decode_ends(c: GeneratorConfig, ends: dict, dtype: jnp.dtype) -> dict:
    ends = cast(ends_axes(c), ends, dtype)
    return {**ends, "heads": {name: turn(head) for name, head in ends["heads"].items()}}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _decode_layer(c: GeneratorConfig, layer: dict, dtype: jnp.dtype) -> dict:
    return fuse(cast(block_axes(c), layer, dtype))


class Autoregressive:
    """Plain decoding of one configuration: `start`, then `advance` through the segments."""

    def __init__(self, c: GeneratorConfig, dtype: jnp.dtype):
        self.config, self.dtype = c, dtype
        self.plan = build_plan(c)
        self.segments = schedule(self.plan)
        self.room = max(s.room for s in self.segments)  # windows never reach past the buffers

    def decode(self, r: Request) -> tuple[Int[Array, "b n ..."], int]:
        """Tokens, and the number of forwards."""
        return self.advance(r.params, self.opened((r,)), r.batch, r.key, r.settings, r.which).tokens[:, :-1], self.plan.times

    def opened(self, given: tuple[Request]) -> Carry:
        """What `start` gives, with the first segment's cache."""
        (r,) = given
        return self.start(r.batch, len(r.index) * (1 + r.which.guided), r.index, self.segments[0].room)

    def stages(self, time: int, steps: int) -> list[tuple[int, int]]:
        """Which segments, each by a program of its own, these steps from `time` on lie in, and how many in each."""
        parts = [(i, min(s.stop, time + steps) - max(s.start, time)) for i, s in enumerate(self.segments)]
        return [(i, count) for i, count in parts if count > 0]

    def grown(self, carry: Carry, stage: int) -> Carry:
        """With the cache that a segment needs."""
        room = self.segments[stage].room
        if room <= carry.cache[0][0].shape[2]:
            return carry
        return carry._replace(cache=moved(carry.cache, empty_cache(self.config, len(carry.valid), room, self.dtype)))

    def continued(self, given: tuple[Request], carry: Carry, steps: Int[Array, ""], stage: int) -> Carry:
        """After `steps` more of one segment."""
        (r,) = given
        stop = carry.time + steps
        step = functools.partial(self._step, r.params, r.batch, r.key, r.settings, r.which, self.segments[stage])
        return jax.lax.fori_loop(carry.time, stop, step, carry)._replace(time=stop)

    def seen(self, carry: Carry) -> tuple[Int[Array, "b n ..."], Bool[Array, "b n"]]:
        """Tokens, and which of them are final."""
        done = jnp.asarray(self.plan.site_time) < carry.time
        return carry.tokens[:, :-1], jnp.broadcast_to(done, (len(carry.tokens), self.plan.sites))

    def row_bytes(self) -> int:
        """Memory that one picture takes: the cache of a guided pair, and the scores of a site."""
        layout = self.config.layout
        cache = bytes_per_row(self.config, self.room, jnp.dtype(self.dtype).itemsize)
        return 2 * cache + 32 * layout.groups * layout.codebook_size

    def start(self, batch: dict, rows: int, index: Int[Array, "b"], room: int | None = None) -> Carry:
        """Nothing computed yet. `batch`: the condition of all rows, guided pairs included; `room`: slots of the cache (all)."""
        layout = self.config.layout
        groups = (layout.groups,) if layout.groups > 1 else ()
        valid = plan_batch(self.config, batch).valid
        valid = jnp.ones((rows, self.plan.slots), bool) if valid is None else valid
        valid = jnp.pad(valid, ((0, 0), (0, self.room - self.plan.slots)))
        tokens = jnp.zeros((len(index), layout.sites + 1, *groups), jnp.int32)
        cache = empty_cache(self.config, rows, room or self.room, self.dtype)
        return Carry(tokens, cache, valid, index, jnp.int32(0))

    def advance(
        self,
        params: dict,
        carry: Carry,
        batch: dict,
        key: PRNGKeyArray,
        settings: Settings,
        which: Filter,
    ) -> Carry:
        """All steps, from a carry that has just started, for tracing inside a jitted program."""
        for stage, segment in enumerate(self.segments):
            step = functools.partial(self._step, params, batch, key, settings, which, segment)
            carry, (first, last) = self.grown(carry, stage), (segment.start, segment.stop)
            carry = step(first, carry) if last - first == 1 else jax.lax.fori_loop(first, last, step, carry)
        return carry._replace(time=jnp.int32(self.plan.times))

    def _step(self, params, batch, key, settings, which, segment: Segment, t, carry: Carry) -> Carry:
        c, i = self.config, t - segment.start
        ends = ends_of(c, params, TurnedHead)
        row = {name: jnp.asarray(getattr(segment, name))[i] for name in ("first", "site", "slot", "head", "weight")}
        x, slots, mask = self._inputs(ends, batch, carry, segment, row["first"], t)
        angles = rotary_angles(c.block, slots.position)
        modulator, head_modulator = ends.modulators(c, batch, slots)
        states, cache = self._layers(params["layers"], x, angles, mask, modulator, carry.cache, row["first"])
        logits = combine_with(ends.heads, states, head_modulator, row["slot"], row["head"], row["weight"])
        rows = len(carry.index)
        unconditional = logits[rows:] if which.guided else None
        scores = target(logits[:rows], unconditional, settings.guidance[t], settings.temperature, settings.top_p, which)
        picked = choose(scores, noise(key, carry.index, row["site"], scores.shape[2:]))
        if "known" in batch:  # decoding/known.py
            known = batch["known"][:rows, jnp.minimum(row["site"], self.plan.sites - 1)]
            picked = jnp.where(known >= 0, known, picked)
        return carry._replace(tokens=carry.tokens.at[:, row["site"]].set(picked), cache=cache)

    def _inputs(self, ends, batch: dict, carry: Carry, segment: Segment, first, t) -> tuple[Array, Slots, Array]:
        """Embeddings of the window's slots, what the plan says of them, and their mask."""
        plan, C = self.plan, self.plan.condition_slots
        spare = self.room - plan.slots

        def window(array: Array, fill: int) -> Array:
            padded = jnp.pad(array, [(0, 0), (0, spare)] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
            return jax.lax.dynamic_slice_in_dim(padded, first, segment.width, axis=1)

        slots = Slots(*map(window, slots_of(plan, plan_batch(self.config, batch)), (PADDING, -1, 0, 0)))
        x = ends.input(self._all_rows(carry), slots).astype(self.dtype)
        if segment.start == 0:
            x = jnp.concatenate([ends.condition(batch).astype(self.dtype), x[:, C:]], axis=1)
        x = ends.place(x, slots)
        key_slot, query_slot = np.arange(carry.cache[0][0].shape[2]), first + jnp.arange(segment.width)
        kind, visible, clique = (
            jnp.asarray(np.pad(a, (0, spare), constant_values=f))
            for a, f in ((plan.kind, PADDING), (plan.visible, np.iinfo(np.int32).max), (plan.clique, -1))
        )
        reads = window(jnp.asarray(plan.reads)[None], 0)[0]
        friends = (clique[key_slot] == clique[query_slot][:, None]) & (clique[query_slot] >= 0)[:, None]
        rule = (kind[key_slot] != PADDING) & ((visible[key_slot] <= jnp.minimum(reads, t)[:, None]) | friends)
        mask = (rule[None] & carry.valid[:, None, key_slot]) | (key_slot == query_slot[:, None])[None]
        return x, slots, mask

    def _all_rows(self, carry: Carry) -> Int[Array, "r n1 ..."]:
        """Guided pairs share their tokens."""
        return jnp.concatenate([carry.tokens] * (len(carry.valid) // len(carry.index)))

    def _layers(
        self, layers: list[dict], x, angles, mask, modulator, cache: Cache, first
    ) -> tuple[list[Array], Cache]:
        """Write each layer's keys and values, attend over the cache; hidden states at the taps."""
        written, states = list(cache), []
        for i, p in enumerate(layers):

            def attend(q, k, v, i=i):
                written[i] = write(written[i], k, v, first)
                return attend_cached(q, *written[i], mask)

            x = layer_of(self.config, p, FusedBlock)(x, angles, attend, condition=modulator)
            states += [x] * self.config.taps.count(i + 1)
        return states, tuple(written)
