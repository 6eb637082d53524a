"""IBQ's tokenizers (arXiv 2412.02692): imagenet256_{1024,8192,16384,262144}.ckpt and the pretrained ones. Pictures in [-1, 1].

taming's network, longer, whose codes are chosen by the largest inner product. Of the weights the moving average is taken, as
the reference does in its evaluation.

`config` of a conversion, all of it optional; ddconfig may stay a section:
  resolution (256)
  beta (0.25), use_entropy_loss (true), entropy_loss_weight (0.05), entropy_temperature (0.01)   used if training goes on
  taming's keys of the network and codebook   must be what the weights show
  sample_minimization_weight, batch_maximization_weight   must be 1
Ignored: lossconfig (whose entropy_loss_weight is the one above), what taming.py ignores, cosine_similarity and l2_normalize (as
there), stage, use_ema, learning_rate, min_learning_rate, resume_lr, lr_drop_epoch, lr_drop_rate, warmup_epochs, scheduler_type,
gradient_clip_val.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..families.vqgan import VQGAN
from ..networks.cnn import CNN
from ..quantizers.vq import VQ
from . import taming
from .from_weights import State, agree, converted, settings

FAMILY = "ibq"


def _quantizer(size: int, dim: int, beta: float, entropy: float, temperature: float) -> VQ:
    weights = {"codebook": beta, "commitment": 1.0, "entropy": entropy, "temperature": temperature}
    return VQ(size, dim, normalize=False, backpropagation="index", **weights)


PRESETS = {
    f"IBQ-{size}": VQGAN(CNN(encoder_blocks=4, decoder_blocks=5), _quantizer(size, 256, 0.25, 0.05, 0.01))
    for size in (1024, 8192, 16384, 262144)
}
DEFAULTS = {"resolution": 256, "beta": 0.25, "use_entropy_loss": True, "entropy_loss_weight": 0.05, "entropy_temperature": 0.01}
FIXED = {"sample_minimization_weight": 1.0, "batch_maximization_weight": 1.0}
IGNORED = (*taming.IGNORED, "learning_rate", "use_ema", "resume_lr", "lr_drop_epoch", "lr_drop_rate", "warmup_epochs",
           "scheduler_type", "min_learning_rate", "gradient_clip_val", "stage", "cosine_similarity",
           "l2_normalize")  # fmt: skip


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, (*taming.CLAIMS, *FIXED), IGNORED)
    agree(FAMILY, c, FIXED)
    net, (size, dim) = taming.shown(FAMILY, c, state)
    entropy = float(c["entropy_loss_weight"]) if c["use_entropy_loss"] else 0.0
    quantizer = _quantizer(size, dim, float(c["beta"]), entropy, float(c["entropy_temperature"]))
    return VQGAN(net, quantizer, image_size=c["resolution"])


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    return converted(FAMILY, configure, taming.table(), checkpoint, config)
