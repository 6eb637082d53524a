"""What pictures are asked for by: labels, prompts or features, checked, and as the arrays of a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from mmgen_tokenizers.errors import UserError, nearest

from mmgen.model.config import ClassCondition, FeatureCondition, TextCondition

WANTED = {ClassCondition: "labels", TextCondition: "prompts", FeatureCondition: "features"}


class Asked(NamedTuple):
    """Arguments of `generate` and `logits`, of which a generator takes one, features with their mask."""

    labels: int | str | Sequence[int | str] | None = None
    prompts: str | Sequence[str] | None = None
    features: Float[np.ndarray, "b c f"] | None = None
    features_mask: Bool[np.ndarray, "b c"] | None = None


class Reader(NamedTuple):
    """How one generator reads them: its configuration, the names of its classes, and its text model."""

    condition: ClassCondition | TextCondition | FeatureCondition
    names: tuple[str, ...]
    text: object | None

    @property
    def wanted(self) -> str:
        return WANTED[type(self.condition)]

    def read(self, asked: Asked, null_allowed: bool = False) -> dict[str, np.ndarray]:
        """The batch. `null_allowed`: also the class that stands for none."""
        given = [name for name in WANTED.values() if getattr(asked, name) is not None]
        wrong = [name for name in given if name != self.wanted]
        wrong += ["features_mask"] * (asked.features_mask is not None and self.wanted != "features")
        if wrong or not given:
            raise UserError(f"this generator takes {self.wanted}" + (f", not {' and '.join(wrong)}" if wrong else ""))
        if asked.labels is not None:
            return {"label": self._labels(asked.labels, null_allowed)}
        if asked.prompts is not None:
            return self._prompts(_listed(asked.prompts))
        return self._features(np.asarray(asked.features, np.float32), asked.features_mask)

    def null(self, batch: dict) -> dict[str, np.ndarray]:
        """The null condition, for as many rows. Features keep their mask, as in LlamaGen."""
        if "label" in batch:
            return {"label": np.full_like(batch["label"], self.condition.classes)}
        if "features" in batch:
            return batch | {"null": np.ones_like(batch["null"])}
        ids, valid = self.text.encode([""], self.condition.length)
        rows = (count(batch), 1)
        return {"prompt": np.tile(np.asarray(ids, np.int32), rows), "prompt_valid": np.tile(np.asarray(valid, bool), rows)}

    def _labels(self, labels: int | str | Sequence[int | str], null_allowed: bool) -> Int[np.ndarray, "b"]:
        labels, known, classes = _listed(labels), self.names, self.condition.classes
        for label in labels:
            if isinstance(label, str) and label not in known:
                raise UserError(f"there is no label {str(label)!r} among {len(known)} names.{nearest(label, known)}")
            if not isinstance(label, str) and not is_whole(label):
                raise UserError(f"labels must be whole numbers or names, not {label!r}")
        ids = [known.index(x) if isinstance(x, str) else int(x) for x in labels]
        if not ids or min(ids) < 0 or max(ids) > classes - (not null_allowed):
            raise UserError(f"labels must be numbers in 0 .. {classes - 1}; got {ids[:8]}")
        return np.array(ids, np.int32)

    def _prompts(self, prompts: list[str]) -> dict[str, np.ndarray]:
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError(f"prompts must be texts, at least one: not {prompts!r}")
        if self.text is None:
            raise UserError("this generator has no text model (text.model) to read prompts with: export it again from its run")
        ids, valid = self.text.encode(prompts, self.condition.length)
        return {"prompt": np.asarray(ids, np.int32), "prompt_valid": np.asarray(valid, bool)}

    def _features(self, features: Float[np.ndarray, "b c f"], mask: Bool[np.ndarray, "b c"] | None) -> dict[str, np.ndarray]:
        c = self.condition
        mask = np.ones(features.shape[:2], bool) if mask is None else np.asarray(mask).astype(bool)
        if not len(features) or features.shape[1:] != (c.length, c.width) or mask.shape != features.shape[:2]:
            raise UserError(
                f"features {features.shape} with a mask {mask.shape} do not fit: this generator needs "
                f"[B, {c.length}, {c.width}] and [B, {c.length}], shorter captions padded on the left"
            )
        return {"features": features, "features_valid": mask, "null": np.zeros(len(features), bool)}


def count(batch: dict) -> int:
    """Rows of a batch."""
    return len(next(iter(batch.values())))


def _listed(values: object) -> list:
    return list(values) if np.iterable(values) and not isinstance(values, str) else [values]


def is_whole(value: object) -> bool:
    return np.issubdtype(np.asarray(value).dtype, np.integer) and np.ndim(value) == 0
