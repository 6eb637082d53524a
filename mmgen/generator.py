"""The object that a user holds: a trained generator with its tokenizer and text model.

gen = mmgen.load("runs/shapes/generator")
out = gen.generate(prompts=["a small red circle above a large blue square"], num=4)
out.images    # float32 [4, H, W, 3] in [-1, 1]
"""

import copy
import dataclasses
import functools
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
from jaxtyping import Bool, Float, Int
from mmgen_tokenizers.configs import from_json, to_json
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import check_shapes, load_arrays, read_json, save_arrays, write_json

from mmgen.decoding.autoregressive import Autoregressive, Request, Settings, decode_params
from mmgen.decoding.choice import Choice, auto_window, check_draft, starting
from mmgen.decoding.jacobi import Init, Jacobi, Start
from mmgen.decoding.known import in_raster, with_known
from mmgen.decoding.masked import MaskedRounds
from mmgen.decoding.speculative import Speculative
from mmgen.decoding.target import Filter, resolve
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, FeatureCondition, GeneratorConfig, Masked, Sampling, TextCondition
from mmgen.model.layers import compute_dtype
from mmgen.parallel.mesh import feed, make_mesh, on_all, parts_of, under

FORMAT = 1  # of config.json
ROWS = 256  # pictures decoded at once, at most


class Output(NamedTuple):
    """What `generate` gives, rows in the order of the labels, prompts or features."""

    tokens: Int[np.ndarray, "b n ..."]
    images: Float[np.ndarray, "b h w 3"] | None  # in [-1, 1]; None without a tokenizer
    forwards: int  # of the transformer, until the last picture of a batch was done

    def __repr__(self) -> str:
        arrays = {name: getattr(self, name) for name in ("tokens", "images")}
        shown = [f"{name} {'none' if a is None else f'{a.dtype} {list(a.shape)}'}" for name, a in arrays.items()]
        return f"Output({', '.join(shown)}, forwards {self.forwards})"


class Progress(NamedTuple):
    """What `stream` gives: all sites, drawn or not yet."""

    tokens: Int[np.ndarray, "b n ..."]
    done: Bool[np.ndarray, "b n"]  # which of them are final


class Job(NamedTuple):
    """A call of `generate`, for all its rows."""

    machine: Autoregressive | MaskedRounds
    models: "tuple[Generator, ...]"  # the generator, and its draft
    batches: list[dict]  # of each model
    index: Int[np.ndarray, "b"]
    key: jax.Array
    settings: Settings
    which: Filter
    start: Start


@dataclass(frozen=True)
class Exported:
    """config.json of an exported generator."""

    model: GeneratorConfig
    sampling: Sampling
    weights: str  # "ema", "raw" or where they were converted from
    labels: tuple[str, ...] | None = None


class Generator:
    """See `mmgen.load`. `params` is the dict of `mmgen.model.transformer.init`; `labels` are the names of the classes."""

    def __init__(
        self,
        config: GeneratorConfig,
        params: dict,
        tokenizer: "mt.Tokenizer | None" = None,
        text=None,
        sampling: Sampling = Sampling(),
        labels: Sequence[str] | None = None,
        weights: str = "raw",
        dtype: Literal["float32", "bfloat16"] | jnp.dtype | None = None,
    ):
        self.config, self.params, self.tokenizer, self.text = config, params, tokenizer, text
        self.sampling, self.labels, self.weights = sampling, tuple(labels) if labels else None, weights
        self.dtype = compute_dtype(dtype)
        self._decoder = (MaskedRounds if isinstance(config.plan, Masked) else Autoregressive)(config, self.dtype)
        self._decoders: dict = {}  # these are shared by copies, which may be used from several threads
        self._programs: dict = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        count = sum(np.size(p) for p in jax.tree.leaves(self.params)) / 1e6
        order, pictures = type(self.config.plan).__name__, "" if self.tokenizer else ", no tokenizer"
        return f"Generator({self._wanted} -> {self.config.layout}, {order}, {count:.2f}M parameters, {self.dtype}{pictures})"

    @property
    def null_label(self) -> int:
        """The class that stands for "no class": accepted by `logits`, refused by `generate`."""
        if not isinstance(self.config.condition, ClassCondition):
            raise UserError(f"this generator has no labels: it takes {self._wanted}")
        return self.config.condition.classes

    # Teacher forcing ------------------------------------------------------------------------------------------------

    def logits(
        self,
        tokens: Int[np.ndarray, "b n ..."],
        labels: Int[np.ndarray, "b"] | None = None,
        prompts: Sequence[str] | None = None,
        features: Float[np.ndarray, "b c f"] | None = None,
        features_mask: Bool[np.ndarray, "b c"] | None = None,
    ) -> Float[np.ndarray, "b n ..."]:
        """float32 [B, N, V] ([B, N, G, V] with groups), before guidance and temperature: row n predicts site n.

        Of a masked model: from all tokens that are not hidden; the id V, `codebook_size`, hides one.
        """
        batch = self._forced(tokens, (labels, prompts, features, features_mask), int(isinstance(self.config.plan, Masked)))
        return np.asarray(self._forward(self._device_params, batch))

    def log_likelihood(
        self,
        tokens: Int[np.ndarray, "b n ..."],
        labels: Int[np.ndarray, "b"] | None = None,
        prompts: Sequence[str] | None = None,
        features: Float[np.ndarray, "b c f"] | None = None,
        features_mask: Bool[np.ndarray, "b c"] | None = None,
    ) -> Float[np.ndarray, "b"]:
        """Of each row of tokens under its condition, in nats, exactly: before guidance and temperature. All devices of this
        process share the rows. Raises UserError for masked models, which know no such number."""
        if isinstance(self.config.plan, Masked):
            raise UserError("a masked model predicts tokens in no order, so it gives no likelihood: take one of another plan")
        batch = self._forced(tokens, (labels, prompts, features, features_mask))
        rows, (mesh, params), run = len(tokens), self._shared_params, self._likelihood
        fill = np.minimum(np.arange(-(-rows // parts_of(mesh)) * parts_of(mesh)), rows - 1)
        return np.asarray(run(params, feed(mesh, {name: value[fill] for name, value in batch.items()})))[:rows]

    @functools.cached_property
    def _shared_params(self) -> tuple:
        """The mesh of all devices of this process (None: one), and the parameters on it."""
        devices = tuple(jax.local_devices())
        mesh = make_mesh((len(devices), 1, 1, 1), devices) if len(devices) > 1 else None
        return mesh, on_all(mesh, self.params)

    @property
    def _likelihood(self) -> Callable:
        def run(params, batch):
            with self._precision:
                return transformer.log_likelihood(self.config, params, batch, self.dtype)

        return self._once(self._programs, "likelihood", lambda: under(self._shared_params[0], jax.jit(run)))

    def _forced(self, tokens, condition: tuple, more: int = 0) -> dict[str, np.ndarray]:
        """The batch of teacher forcing, checked. `more`: ids beyond the codes."""
        batch, tokens, layout = self._condition(*condition, null_allowed=True), np.asarray(tokens, np.int32), self.config.layout
        shape = (len(tokens), layout.sites, *([layout.groups] if layout.groups > 1 else []))
        if tokens.shape != shape or len(tokens) != _rows(batch):
            raise UserError(
                f"tokens have shape {tokens.shape}; {_rows(batch)} conditions and this model need {(_rows(batch), *shape[1:])}"
            )
        highest = layout.codebook_size - 1 + more
        if tokens.min() < 0 or tokens.max() > highest:
            raise UserError(f"tokens must be in 0 .. {highest}; found {tokens.min()} .. {tokens.max()}")
        return {"ids": tokens} | batch

    def copied(self, params: dict | None = None) -> "Generator":
        """One with the same compiled programs that keeps arrays on a device of its own, or has other parameters."""
        other = copy.copy(self)
        other.params = self.params if params is None else params
        for name in ("_device_params", "_decode_params", "_shared_params"):  # made from the parameters when first used
            other.__dict__.pop(name, None)
        return other

    def _once(self, held: dict, name: Any, make: Callable) -> Any:
        """What `make` gives: made once for all copies, whichever thread asks first."""
        with self._lock:
            if name not in held:
                held[name] = make()
            return held[name]

    @functools.cached_property
    def _device_params(self) -> dict:
        return jax.device_put(self.params)

    @functools.cached_property
    def _forward(self):
        def forward(params, batch):
            with self._precision:
                return transformer.forward(self.config, params, batch, dtype=self.dtype)

        return jax.jit(forward)

    @property
    def _precision(self):
        """float32 means float32: accelerators multiply it in fewer bits unless told otherwise."""
        return jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else None)

    # Sampling -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        labels: int | str | Sequence[int | str] | None = None,
        prompts: str | Sequence[str] | None = None,
        features: Float[np.ndarray, "b c f"] | None = None,
        features_mask: Bool[np.ndarray, "b c"] | None = None,
        num: int | None = None,
        seed: int = 0,
        first_index: int = 0,
        guidance: float | Float[np.ndarray, "t"] | None = None,
        guidance_schedule: str | tuple[str, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        choice_temperature: float | None = None,
        known: Int[np.ndarray, "b n ..."] | None = None,
        known_mask: Bool[np.ndarray, "b n ..."] | None = None,
        decoder: Literal["autoregressive", "jacobi", "speculative"] = "autoregressive",
        window: int | Literal["auto"] | None = None,
        init: Init | Int[np.ndarray, "b n ..."] | None = None,
        coupling: Literal["gumbel", "maximal"] | None = None,
        draft: "Generator | None" = None,
    ) -> Output:
        """Draw `num` pictures (1) for each label, prompt or row of features.

        The same (seed, sample index) gives the same picture in any batch (in float32); indices count from `first_index`, so
        that a job can be continued. None: the settings recommended with the weights. Guidance g is uncond + g (cond - uncond)
        (arXiv 2207.12598); an array gives one factor per decode step; `guidance_schedule` "constant", "linear" or
        ("power_cosine", p) spreads one number over the steps. `steps` and `choice_temperature` are those of a masked plan.

        `known` [B, N] (or [N], for all): tokens of a picture. Those where `known_mask` is true are kept, the others are drawn
        to fit (decoding/known.py says which plans can keep what); the null label is then allowed too.

        `decoder` "jacobi" computes `window` sites a forward ("auto": about as many as it could while it reads the weights),
        beginning from `init`: copies of the "left" or "upper" neighbor, a draw from the last "law" or from all tokens
        ("uniform"), or tokens [B, N] that may be near; "speculative" lets the generator `draft` guess them. Both give the
        tokens of "autoregressive" (in float32) in fewer forwards. With `coupling` "maximal" they take fewer still, and give
        other pictures of the same distribution, which depend on the window too.

        Raises UserError for what does not fit the model.
        """
        job = self._job(
            (labels, prompts, features, features_mask), num, seed, first_index, Choice(decoder, window, init, coupling, draft),
            guidance=guidance, guidance_schedule=guidance_schedule, temperature=temperature, top_k=top_k, top_p=top_p,
            steps=steps, choice_temperature=choice_temperature, known=known, known_mask=known_mask,
        )  # fmt: skip
        pieces = [self._piece(job, rows) for rows in self._pieces(job)]
        tokens = in_raster(self.config, job.batches[0], np.concatenate([tokens for tokens, _ in pieces]))
        images = None if self.tokenizer is None else np.asarray(self.tokenizer.decode(tokens, self.config.layout))
        return Output(tokens, images, max(forwards for _, forwards in pieces))

    def stream(
        self,
        labels: int | str | Sequence[int | str] | None = None,
        prompts: str | Sequence[str] | None = None,
        features: Float[np.ndarray, "b c f"] | None = None,
        features_mask: Bool[np.ndarray, "b c"] | None = None,
        num: int | None = None,
        seed: int = 0,
        first_index: int = 0,
        every: int = 16,
        decoder: Literal["autoregressive", "jacobi", "speculative"] = "autoregressive",
        window: int | Literal["auto"] | None = None,
        init: Init | Int[np.ndarray, "b n ..."] | None = None,
        coupling: Literal["gumbel", "maximal"] | None = None,
        draft: "Generator | None" = None,
        **settings,
    ) -> Iterator[Progress]:
        """The tokens of `generate` as they come: yields after each `every` forwards, the last time with all of them.

        `settings`: guidance, guidance_schedule, temperature, top_k, top_p. Raises UserError where `generate` does, for more
        pictures than are decoded at once, and for masked models, which draw all sites again and again.
        """
        if every < 1:
            raise UserError(f"every {every} must be at least 1 forward")
        choice = Choice(decoder, window, init, coupling, draft)
        job = self._job((labels, prompts, features, features_mask), num, seed, first_index, choice, **settings)
        if isinstance(job.machine, MaskedRounds):
            raise UserError("a masked model has no final tokens before its last round: use generate")
        (rows, *more) = self._pieces(job)
        if more:
            raise UserError(f"{len(job.index)} pictures do not fit in one stream: ask for at most {len(rows)}")
        return self._stream(job, rows, every)

    def _stream(self, job: Job, rows: np.ndarray, every: int) -> Iterator[Progress]:
        computed, waiting, ahead, done = self._looks(job, rows, every), [], 1, np.zeros(1, bool)
        while not done.all():
            waiting += itertools.islice(computed, ahead - len(waiting))
            tokens, done = (np.asarray(array)[: len(rows)] for array in waiting.pop(0))
            yield Progress(tokens, done)
            ahead = 2  # whoever asks again goes on: the device does not wait for it from then on

    def _looks(self, job: Job, rows: np.ndarray, every: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Tokens and which are final, after each `every` forwards, without end; none of them is waited for."""
        given = self._given(job, rows)
        opened, grown, continued = self._stream_programs(job.machine, job.which)
        carry, at, look = opened(*given), 0, None
        for time in itertools.count(0, every):
            for stage, steps in job.machine.stages(time, every):
                carry, at = carry if stage == at else grown(carry, stage), stage
                carry, look = continued(stage, carry, np.int32(steps), *given)
            yield look

    def _job(
        self, condition: tuple, num, seed: int, first_index: int, choice: Choice,
        known=None, known_mask=None, steps=None, choice_temperature=None, **sampling,
    ) -> Job:  # fmt: skip
        """The arguments of `generate`, checked."""
        models = (self,) if choice.draft is None else (self, choice.draft)
        check_draft(*models)
        num = 1 if num is None else num
        if not _is_whole(num) or num < 1:
            raise UserError(f"num {num!r} must be a whole number from 1 on")
        check_seed(seed)
        if not _is_whole(first_index) or first_index < 0:
            raise UserError(f"first_index {first_index!r} must be a whole number from 0 on")
        batches = []
        for model in models:
            batch = model._condition(*condition, null_allowed=known is not None)
            batch = with_known(model.config, model._decoder.plan, batch, known, known_mask)
            batches.append({name: np.repeat(value, num, axis=0) for name, value in batch.items()})
        times, rounds = self._rounds(steps, choice_temperature)
        which, settings = resolve(self.sampling, times, **sampling)
        rows = _rows(batches[0])
        return Job(
            self._machine(choice, rows, which), models, batches, (first_index + np.arange(rows)).astype(np.uint32),
            jax.random.key(seed, impl="threefry2x32"), Settings(**settings, **rounds), which,
            starting(self.config, batches[0], choice.init),
        )  # fmt: skip

    def _rounds(self, steps: int | None, choice_temperature: float | None) -> tuple[int, dict[str, np.float32]]:
        """How many steps decoding takes, and what only masked plans have."""
        plan = self.config.plan
        if isinstance(plan, Masked):
            given = {"steps": steps, "choice_temperature": choice_temperature}
            plan = dataclasses.replace(plan, **{name: value for name, value in given.items() if value is not None})
            return plan.steps, {"choice_temperature": np.float32(plan.choice_temperature)}
        if steps is not None or choice_temperature is not None:
            raise UserError("steps and choice_temperature are settings of masked models; this one's order says its steps")
        return self._decoder.plan.times, {}

    def _pieces(self, job: Job) -> Iterator[np.ndarray]:
        """Row numbers of pieces that fit in memory."""
        rows, most = len(job.index), min(self.rows_at_once, self._fitting(job.machine))
        for first in range(0, rows, most):
            yield np.arange(first, min(first + most, rows))

    @property
    def rows_at_once(self) -> int:
        """How many pictures plain decoding draws at once."""
        return self._fitting(self._decoder)

    def _fitting(self, machine: Autoregressive) -> int:
        """A power of two, so that caches and logits take about a quarter of an accelerator's memory, or 2 GiB of a CPU's."""
        stats = jax.local_devices()[0].memory_stats() or {}
        budget = stats["bytes_limit"] // 4 if "bytes_limit" in stats else 2 << 30
        return min(ROWS, 1 << max(0, int(np.log2(max(1, budget // machine.row_bytes())))))

    def _piece(self, job: Job, rows: np.ndarray) -> tuple[Int[np.ndarray, "b n ..."], int]:
        """Tokens and forwards."""
        tokens, forwards = self._program(job.machine, job.which)(*self._given(job, rows))
        return np.asarray(tokens)[: len(rows)], int(forwards)

    def _given(self, job: Job, rows: np.ndarray) -> tuple:
        """The arguments of a program. Rows are filled up to a power of two: few sizes are ever compiled."""
        fill = rows[np.minimum(np.arange(1 << (len(rows) - 1).bit_length()), len(rows) - 1)]
        models = [
            (model._decode_params, model._pairs({name: value[fill] for name, value in batch.items()}, job.which))
            for model, batch in zip(job.models, job.batches, strict=True)
        ]
        extra = (job.start._replace(tokens=job.start.tokens[fill]),) if isinstance(job.machine, Jacobi) else ()
        return models, job.index[fill], job.key, job.settings, extra

    def _pairs(self, batch: dict, which: Filter) -> dict[str, np.ndarray]:
        """With the null condition of guidance behind."""
        if not which.guided:
            return batch
        null = self._null(batch)
        return {name: np.concatenate([value, null.get(name, value)]) for name, value in batch.items()}

    def _program(self, machine: Autoregressive | MaskedRounds, which: Filter):
        def run(*given):
            with self._precision:
                return machine.decode(*_requests(which, *given))

        return self._once(self._programs, (machine, which), lambda: jax.jit(run))

    def _stream_programs(self, machine: Autoregressive, which: Filter) -> tuple:
        """What begins, what makes room for the next stage, and what goes on for some forwards and shows the tokens."""

        def opened(*given):
            with self._precision:
                return machine.opened(_requests(which, *given))

        def continued(stage, carry, steps, *given):
            with self._precision:
                carry = machine.continued(_requests(which, *given), carry, steps, stage)
            return carry, machine.seen(carry)

        def made() -> tuple:
            grown = jax.jit(lambda carry, stage: machine.grown(carry, stage), static_argnums=1)
            return jax.jit(opened), grown, jax.jit(continued, static_argnums=0, donate_argnums=1)

        return self._once(self._programs, (machine, which, "stream"), made)

    def _machine(self, choice: Choice, rows: int, which: Filter) -> Autoregressive | MaskedRounds:
        """The decoder of a choice: one object, so that its program is compiled once."""
        if choice.decoder == "autoregressive":
            return self._decoder
        window = choice.window or "auto"
        if window == "auto":
            rows = min(rows, self.rows_at_once) * (1 + which.guided)
            window = auto_window(self.config, self._decode_params, rows, self.dtype.itemsize)
        draft = () if choice.draft is None else (choice.draft.config, choice.draft.dtype)
        kind, sizes = Speculative if draft else Jacobi, (*draft, int(window), choice.coupling or "gumbel")
        return self._once(self._decoders, sizes, lambda: kind(self.config, self.dtype, *sizes))

    @functools.cached_property
    def _decode_params(self) -> dict:
        return decode_params(self.config, self.params, self.dtype)

    # Conditions -----------------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> str:
        return {ClassCondition: "labels", TextCondition: "prompts", FeatureCondition: "features"}[type(self.config.condition)]

    def _condition(self, labels, prompts, features, features_mask, null_allowed: bool = False) -> dict[str, np.ndarray]:
        given = {"labels": labels, "prompts": prompts, "features": features}
        wrong = [name for name, value in given.items() if value is not None and name != self._wanted]
        if wrong or given[self._wanted] is None:
            raise UserError(f"this generator takes {self._wanted}" + (f", not {' and '.join(wrong)}" if wrong else ""))
        if labels is not None:
            return {"label": self._labels(labels, null_allowed)}
        if prompts is not None:
            prompts = _listed(prompts)
            if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
                raise UserError(f"prompts must be texts, at least one: not {prompts!r}")
            if self.text is None:
                raise UserError(
                    "this generator has no text model (text.model) to read prompts with: export it again from its run"
                )
            ids, valid = self.text.encode(prompts, self.config.condition.length)
            return {"prompt": np.asarray(ids, np.int32), "prompt_valid": np.asarray(valid, bool)}
        return self._features(np.asarray(features, np.float32), features_mask)

    def _labels(self, labels, null_allowed: bool) -> Int[np.ndarray, "b"]:
        labels = _listed(labels)
        known = self.labels or ()
        for label in labels:
            if isinstance(label, str) and label not in known:
                raise UserError(f"there is no label {str(label)!r} among {len(known)} names.{nearest(label, known)}")
            if not isinstance(label, str) and not _is_whole(label):
                raise UserError(f"labels must be whole numbers or names, not {label!r}")
        ids = np.array([known.index(x) if isinstance(x, str) else int(x) for x in labels], np.int32)
        highest = self.null_label if null_allowed else self.null_label - 1
        if len(ids) == 0 or ids.min() < 0 or ids.max() > highest:
            raise UserError(f"labels must be numbers in 0 .. {self.null_label - 1}; got {ids.tolist()[:8]}")
        return ids

    def _features(self, features: np.ndarray, mask) -> dict[str, np.ndarray]:
        c = self.config.condition
        mask = np.ones(features.shape[:2], bool) if mask is None else np.asarray(mask).astype(bool)
        if features.shape[1:] != (c.length, c.width) or mask.shape != features.shape[:2]:
            raise UserError(
                f"features {features.shape} with a mask {mask.shape} do not fit: this generator needs "
                f"[B, {c.length}, {c.width}] and [B, {c.length}], shorter captions padded on the left"
            )
        return {"features": features, "features_valid": mask, "null": np.zeros(len(features), bool)}

    def _null(self, batch: dict) -> dict[str, np.ndarray]:
        """The null condition, for as many rows. Features keep their mask, as in LlamaGen."""
        if "label" in batch:
            return {"label": np.full_like(batch["label"], self.null_label)}
        if "features" in batch:
            return batch | {"null": np.ones_like(batch["null"])}
        ids, valid = self.text.encode([""], self.config.condition.length)
        rows = (_rows(batch), 1)
        return {"prompt": np.tile(np.asarray(ids, np.int32), rows), "prompt_valid": np.tile(np.asarray(valid, bool), rows)}

    # Files ----------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors, text.model and a copy of the tokenizer: all that `mmgen.load` needs."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        exported = Exported(self.config, self.sampling, self.weights, self.labels)
        save_arrays(folder, jax.tree.map(np.asarray, self.params))
        if self.text is not None:
            self.text.save(folder / "text.model")
        if self.tokenizer is not None:
            self.tokenizer.save(folder / "tokenizer")
        elif (folder / "tokenizer").exists():
            shutil.rmtree(folder / "tokenizer")
        if self.text is None:
            (folder / "text.model").unlink(missing_ok=True)
        write_json(folder / "config.json", {"format": FORMAT, "family": "generator", **to_json(exported)})


def _requests(which: Filter, models: list[tuple[dict, dict]], index, key, settings: Settings, extra: tuple) -> tuple:
    """What a decoder takes, from the arguments of its program."""
    return *(Request(params, batch, index, key, settings, which) for params, batch in models), *extra


def _listed(values: object) -> list:
    return list(values) if np.iterable(values) and not isinstance(values, str) else [values]


def _is_whole(value: object) -> bool:
    return np.issubdtype(np.asarray(value).dtype, np.integer) and np.ndim(value) == 0


def check_seed(seed: int) -> None:
    """Raises UserError for what is no seed. JAX keeps 32 bits of it: a larger one would draw the pictures of a smaller one."""
    if not _is_whole(seed) or not 0 <= seed < 1 << 32:
        raise UserError(f"seed {seed!r} must be a whole number in 0 .. {(1 << 32) - 1}")


def _rows(batch: dict) -> int:
    return len(next(iter(batch.values())))


def load(folder: str | Path, dtype: Literal["float32", "bfloat16"] | None = None) -> Generator:
    """An exported or converted folder, or a run folder, whose export/ is taken. Raises UserError for anything else.

    `dtype`: what matrices multiply in; None: float32 on a CPU, else bfloat16. Only float32 gives the same tokens in any batch.
    """
    folder = Path(folder)
    folder = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    config = read_json(folder / "config.json")
    if config.pop("family", None) != "generator":
        raise UserError(f"{folder} does not hold a generator; a tokenizer is loaded by mmgen_tokenizers.load")
    if config.pop("format", None) != FORMAT:
        raise UserError(f"{folder}/config.json has another format than {FORMAT}: update mmgen, or export the run again")
    exported = from_json(Exported, config)
    params = load_arrays(folder)
    check_shapes(folder, params, jax.eval_shape(lambda: transformer.init(exported.model, jax.random.key(0))))
    text = None
    if (folder / "text.model").is_file():
        from mmgen.data.text import TextTokenizer

        text = TextTokenizer.load(folder / "text.model")
    tokenizer = mt.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    return Generator(exported.model, params, tokenizer, text, exported.sampling, exported.labels, exported.weights, dtype)
