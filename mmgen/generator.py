"""The object that a user holds: a trained generator with its tokenizer and text model.

gen = mmgen.load("runs/shapes/generator")
out = gen.generate(prompts=["a small red circle above a large blue square"], num=4)
out.images    # float32 [4, H, W, 3] in [-1, 1]
"""

import functools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
from jaxtyping import Bool, Float, Int
from mmgen_tokenizers.configs import from_json, to_json
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import check_shapes, load_arrays, read_json, save_arrays, write_json

from mmgen.decoding.autoregressive import Autoregressive, Settings, decode_params
from mmgen.decoding.target import Filter, resolve
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, FeatureCondition, GeneratorConfig, Sampling, TextCondition
from mmgen.model.kv_cache import bytes_per_row
from mmgen.model.layers import compute_dtype

FORMAT = 1  # of config.json
DECODERS = ("autoregressive",)
ROWS = 256  # pictures decoded at once, at most


class Output(NamedTuple):
    """What `generate` gives, rows in the order of the labels, prompts or features."""

    tokens: Int[np.ndarray, "b n ..."]
    images: Float[np.ndarray, "b h w 3"] | None  # in [-1, 1]; None without a tokenizer
    forwards: int  # of the transformer, one picture's worth


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
        self._decoder = Autoregressive(config, self.dtype)
        self._programs: dict = {}

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
        """float32 [B, N, V] ([B, N, G, V] with groups), before guidance and temperature: row n predicts site n."""
        batch = self._condition(labels, prompts, features, features_mask, null_allowed=True)
        tokens = np.asarray(tokens, np.int32)
        layout = self.config.layout
        shape = (len(tokens), layout.sites, *([layout.groups] if layout.groups > 1 else []))
        if tokens.shape != shape or len(tokens) != _rows(batch):
            raise UserError(
                f"tokens have shape {tokens.shape}; {_rows(batch)} conditions and this model need {(_rows(batch), *shape[1:])}"
            )
        if tokens.min() < 0 or tokens.max() >= layout.codebook_size:
            raise UserError(f"tokens must be in 0 .. {layout.codebook_size - 1}; found {tokens.min()} .. {tokens.max()}")
        return np.asarray(self._forward(self._device_params, {"ids": tokens} | batch))

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
        decoder: str = "autoregressive",
    ) -> Output:
        """Draw `num` pictures (1) for each label, prompt or row of features.

        The same (seed, sample index) gives the same picture in any batch (in float32); indices count from `first_index`, so
        that a job can be continued. None: the settings recommended with the weights. Guidance g is uncond + g (cond - uncond)
        (arXiv 2207.12598); an array gives one factor per decode step; `guidance_schedule` "constant", "linear" or
        ("power_cosine", p) spreads one number over the steps. Raises UserError for what does not fit the model.
        """
        if decoder not in DECODERS:
            raise UserError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}.{nearest(decoder, DECODERS)}")
        batch = self._condition(labels, prompts, features, features_mask)
        if (num := 1 if num is None else num) < 1:
            raise UserError(f"num {num} must be at least 1")
        batch = {name: np.repeat(value, num, axis=0) for name, value in batch.items()}
        plan = self._decoder.plan
        which, settings = resolve(
            self.sampling, plan.times, self.config.layout.codebook_size,
            guidance=guidance, guidance_schedule=guidance_schedule, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        key = jax.random.key(seed, impl="threefry2x32")
        tokens = np.concatenate(
            [self._chunk(piece, index, key, settings, which) for piece, index in self._chunks(batch, first_index)]
        )
        images = None if self.tokenizer is None else np.asarray(self.tokenizer.decode(tokens, self.config.layout))
        return Output(tokens, images, plan.times)

    def _chunks(self, batch: dict, first_index: int) -> Iterator[tuple[dict, np.ndarray]]:
        """Pieces that fit in memory."""
        rows, most = _rows(batch), self.rows_at_once
        for start in range(0, rows, most):
            piece = {name: value[start : start + most] for name, value in batch.items()}
            yield piece, first_index + start + np.arange(_rows(piece))

    @property
    def rows_at_once(self) -> int:
        """A power of two, so that caches and logits take about a quarter of an accelerator's memory, or 2 GiB of a CPU's."""
        stats = jax.local_devices()[0].memory_stats() or {}
        budget = stats["bytes_limit"] // 4 if "bytes_limit" in stats else 2 << 30
        layout = self.config.layout
        cache = 2 * bytes_per_row(self.config, self._decoder.room, jnp.dtype(self.dtype).itemsize)
        return min(ROWS, 1 << max(0, int(np.log2(max(1, budget // (cache + 32 * layout.groups * layout.codebook_size))))))

    def _chunk(self, batch: dict, index: np.ndarray, key, settings: dict, which: Filter) -> Int[np.ndarray, "b n ..."]:
        """Rows are filled up to a power of two: few sizes are ever compiled."""
        rows = len(index)
        size = 1 << (rows - 1).bit_length()
        fill = np.minimum(np.arange(size), rows - 1)
        batch = {name: value[fill] for name, value in batch.items()}
        if which.guided:
            batch = {name: np.concatenate([value, self._null(batch)[name]]) for name, value in batch.items()}
        run = self._program(which)
        return np.asarray(run(self._decode_params, batch, index[fill].astype(np.uint32), key, Settings(**settings)))[:rows]

    def _program(self, which: Filter):
        if which not in self._programs:

            def run(params, batch, index, key, settings):
                carry = self._decoder.start(batch, len(index) * (1 + which.guided), index)
                with self._precision:
                    return self._decoder.advance(params, carry, batch, key, settings, which).tokens[:, :-1]

            self._programs[which] = jax.jit(run)
        return self._programs[which]

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
            prompts = [prompts] if isinstance(prompts, str) else list(prompts)
            if not prompts:
                raise UserError("prompts is empty: pass at least one")
            if self.text is None:
                raise UserError(
                    "this generator has no text model (text.model) to read prompts with: export it again from its run"
                )
            ids, valid = self.text.encode(prompts, self.config.condition.length)
            return {"prompt": np.asarray(ids, np.int32), "prompt_valid": np.asarray(valid, bool)}
        return self._features(np.asarray(features, np.float32), features_mask)

    def _labels(self, labels, null_allowed: bool) -> Int[np.ndarray, "b"]:
        labels = [labels] if isinstance(labels, str | int | np.integer) else list(labels)
        known = self.labels or ()
        for label in labels:
            if isinstance(label, str) and label not in known:
                raise UserError(f"there is no label {str(label)!r} among {len(known)} names.{nearest(label, known)}")
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
