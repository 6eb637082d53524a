"""The object that a user holds: a trained generator with its tokenizer and text model.

gen = mmgen.load("runs/shapes/generator")
out = gen.generate(prompts=["a small red circle above a large blue square"], num=4)
out.images    # float32 [4, H, W, 3] in [-1, 1]
"""

import copy
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
from jaxtyping import Bool, Float, Int
from mmgen_tokenizers.configs import from_json, to_json
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import check_shapes, load_arrays, read_json, save_arrays, write_json

from mmgen.conditions import Asked, Reader, count, is_whole
from mmgen.decoding.autoregressive import Autoregressive, Settings, decode_params
from mmgen.decoding.choice import Choice, auto_window, check_draft, starting
from mmgen.decoding.jacobi import Init, Jacobi
from mmgen.decoding.jobs import Job, Programs, decoder_of, fitting, matmul_precision
from mmgen.decoding.known import in_raster, with_known
from mmgen.decoding.masked import MaskedRounds
from mmgen.decoding.speculative import Speculative
from mmgen.decoding.target import Filter, resolve
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, GeneratorConfig, Masked, Sampling
from mmgen.model.layers import compute_dtype
from mmgen.parallel.mesh import feed, local_mesh, parts_of, placed, under

FORMAT = 1  # of config.json


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
        tensor: int = 1,
    ):
        self.config, self.params, self.tokenizer, self.text = config, params, tokenizer, text
        self.sampling, self.labels, self.weights = sampling, tuple(labels) if labels else None, weights
        self.dtype = compute_dtype(dtype)
        self._decoder = decoder_of(config, self.dtype)
        self._mesh = local_mesh(tensor)
        self._programs = Programs(self.dtype, self._mesh)

    def __repr__(self) -> str:
        size, wanted = sum(np.size(p) for p in jax.tree.leaves(self.params)) / 1e6, self._reader.wanted
        order, pictures = type(self.config.plan).__name__, "" if self.tokenizer else ", no tokenizer"
        return f"Generator({wanted} -> {self.config.layout}, {order}, {size:.2f}M parameters, {self.dtype}{pictures})"

    @property
    def null_label(self) -> int:
        """The class that stands for "no class": accepted by `logits`, refused by `generate`."""
        if not isinstance(self.config.condition, ClassCondition):
            raise UserError(f"this generator has no labels: it takes {self._reader.wanted}")
        return self.config.condition.classes

    @property
    def _reader(self) -> Reader:
        return Reader(self.config.condition, self.labels or (), self.text)

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
        batch = self._forced(tokens, Asked(labels, prompts, features, features_mask), int(isinstance(self.config.plan, Masked)))
        return self._of_rows("logits", transformer.forward, batch)

    def log_likelihood(self, tokens: Int[np.ndarray, "b n ..."], **condition) -> Float[np.ndarray, "b"]:
        """Of each row of tokens under its condition (labels, prompts or features, as `logits` takes them), in nats, exactly:
        before guidance and temperature. Raises UserError for masked models, which know no such number."""
        if isinstance(self.config.plan, Masked):
            raise UserError("a masked model predicts tokens in no order, so it gives no likelihood: take one of another plan")
        return self._of_rows("likelihood", transformer.log_likelihood, self._forced(tokens, Asked(**condition)))

    def _of_rows(self, name: str, function: Callable, batch: dict[str, np.ndarray]) -> np.ndarray:
        """What a function of (config, params, batch, dtype=) gives for each row, which all devices share."""

        def run(params, batch):
            with matmul_precision(self.dtype):
                return function(self.config, params, batch, dtype=self.dtype)

        program = self._programs.once(self._programs.compiled, name, lambda: jax.jit(run))
        rows, parts = count(batch), parts_of(self._mesh)
        fill = np.minimum(np.arange(-(-rows // parts) * parts), rows - 1)
        shared = feed(self._mesh, {name: value[fill] for name, value in batch.items()})
        return np.asarray(under(self._mesh, program)(self._placed_params, shared))[:rows]

    def _forced(self, tokens, condition: Asked, more: int = 0) -> dict[str, np.ndarray]:
        """The batch of teacher forcing, checked. `more`: ids beyond the codes."""
        batch, tokens, layout = self._reader.read(condition, True), np.asarray(tokens, np.int32), self.config.layout
        shape = (len(tokens), layout.sites, *([layout.groups] if layout.groups > 1 else []))
        if tokens.shape != shape or len(tokens) != count(batch):
            raise UserError(
                f"tokens have shape {tokens.shape}; {count(batch)} conditions and this model need {(count(batch), *shape[1:])}"
            )
        highest = layout.codebook_size - 1 + more
        if tokens.min() < 0 or tokens.max() > highest:
            raise UserError(f"tokens must be in 0 .. {highest}; found {tokens.min()} .. {tokens.max()}")
        return {"ids": tokens} | batch

    def copied(self, params: dict) -> "Generator":
        """One with the same compiled programs that has other parameters."""
        other = copy.copy(self)
        other.params = params
        for name in ("fused", "_placed_params"):  # made from the parameters when first used
            other.__dict__.pop(name, None)
        return other

    @functools.cached_property
    def _placed_params(self) -> dict:
        return jax.device_put(placed(self._mesh, transformer.axes(self.config), self.params))

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
            Asked(labels, prompts, features, features_mask), Choice(decoder, window, init, coupling, draft),
            num, seed, first_index, known, known_mask, steps, choice_temperature,
            guidance=guidance, guidance_schedule=guidance_schedule, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        pieces = [self._programs.decode(job, rows) for rows in job.pieces(self.rows_at_once, self._mesh)]
        tokens = in_raster(self.config, job.batches[0], np.concatenate([tokens for tokens, _ in pieces]))
        images = None if self.tokenizer is None else self._painter.decode(tokens, self.config.layout)
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
        job = self._job(Asked(labels, prompts, features, features_mask), choice, num, seed, first_index, **settings)
        if isinstance(job.machine, MaskedRounds):
            raise UserError("a masked model has no final tokens before its last round: use generate")
        (rows, *more) = job.pieces(self.rows_at_once, self._mesh)
        if more:
            raise UserError(f"{len(job.index)} pictures do not fit in one stream: ask for at most {len(rows)}")
        return (Progress(*look) for look in self._programs.stream(job, rows, every))

    def _job(
        self, condition: Asked, choice: Choice, num: int | None, seed: int, first_index: int,
        known=None, known_mask=None, steps=None, choice_temperature=None, **sampling,
    ) -> Job:  # fmt: skip
        """The arguments of `generate`, checked."""
        models = (self,) if choice.draft is None else (self, choice.draft)
        check_draft(*models)
        num = 1 if num is None else num
        if not is_whole(num) or num < 1:
            raise UserError(f"num {num!r} must be a whole number from 1 on")
        check_seed(seed)
        if not is_whole(first_index) or first_index < 0:
            raise UserError(f"first_index {first_index!r} must be a whole number from 0 on")
        batches = []
        for model in models:
            batch = model._reader.read(condition, null_allowed=known is not None)
            batch = with_known(model.config, model._decoder.plan, batch, known, known_mask)
            batches.append({name: np.repeat(value, num, axis=0) for name, value in batch.items()})
        times, rounds = self._rounds(steps, choice_temperature)
        which, settings = resolve(self.sampling, times, **sampling)
        nulls = [model._reader.null(batch) for model, batch in zip(models, batches, strict=True)] if which.guided else []
        rows = count(batches[0])
        return Job(
            self._machine(choice, rows, which), models, batches, nulls, (first_index + np.arange(rows)).astype(np.uint32),
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

    @property
    def rows_at_once(self) -> int:
        """How many pictures plain decoding draws at once."""
        return fitting(self._decoder, self._mesh)

    def _machine(self, choice: Choice, rows: int, which: Filter) -> Autoregressive | MaskedRounds:
        """The decoder of a choice: one object, so that its program is compiled once."""
        if choice.decoder == "autoregressive":
            return self._decoder
        window = choice.window or "auto"
        if window == "auto":
            each = -(-min(rows, self.rows_at_once) // parts_of(self._mesh))
            window = auto_window(self.config, self.fused, each * (1 + which.guided), self.dtype.itemsize)
        draft = () if choice.draft is None else (choice.draft.config, choice.draft.dtype)
        kind, sizes = Speculative if draft else Jacobi, (*draft, int(window), choice.coupling or "gumbel")
        return self._programs.once(self._programs.machines, sizes, lambda: kind(self.config, self.dtype, *sizes))

    @functools.cached_property
    def fused(self) -> dict:
        """The parameters in the form that decodes."""
        return decode_params(self.config, self.params, self.dtype, self._mesh)

    @functools.cached_property
    def _painter(self) -> "mt.Tokenizer":
        """The tokenizer on all devices."""
        return self.tokenizer if self._mesh is None else self.tokenizer.over(self._mesh.devices.flat)

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


def check_seed(seed: int) -> None:
    """Raises UserError for what is no seed. JAX keeps 32 bits of it: a larger one would draw the pictures of a smaller one."""
    if not is_whole(seed) or not 0 <= seed < 1 << 32:
        raise UserError(f"seed {seed!r} must be a whole number in 0 .. {(1 << 32) - 1}")


def load(folder: str | Path, dtype: Literal["float32", "bfloat16"] | None = None, tensor: int = 1) -> Generator:
    """An exported or converted folder, or a run folder, whose export/ is taken. Raises UserError for anything else.

    `dtype`: what matrices multiply in; None: float32 on a CPU, else bfloat16. Only float32 gives the same tokens in any batch.
    All devices of this process draw, each its own pictures; `tensor`: so many of them share the weights and each picture. To
    use fewer, let JAX see fewer (CUDA_VISIBLE_DEVICES=0).
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
    return Generator(
        exported.model, params, tokenizer, text, exported.sampling, exported.labels, exported.weights, dtype, tensor
    )
