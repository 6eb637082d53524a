"""Published checkpoints -> a folder that `mmgen.load` reads, and back: one file a family."""

from pathlib import Path
from typing import TYPE_CHECKING

import mmgen_tokenizers as mt
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import check_target, read_checkpoint, save_arrays, unflatten

from mmgen.model.inputs import adopt
from mmgen.pretrained import llamagen, maskbit, nar, rar, var

if TYPE_CHECKING:
    from mmgen.generator import Generator

FAMILIES = {"llamagen-gpt": llamagen, "maskbit": maskbit, "nar": nar, "rar": rar, "var": var}
FORMATS = {name.removesuffix("-gpt"): module for name, module in FAMILIES.items()}  # of export


def convert(
    family: str, checkpoint: str | Path, out: str | Path, config: dict | None = None, tokenizer: str | Path | None = None
) -> "Generator | mt.Tokenizer":
    """Write `checkpoint` (safetensors, .pt, .pth, .ckpt) of a family in our form to `out` and return the Generator.

    `config`: the family's own keys, where the weights do not say it all. `tokenizer`: a folder, copied into `out`. Families of
    tokenizers are converted by `mmgen_tokenizers.convert`, and give a Tokenizer. Raises UserError that lists tensors which are
    missing, unknown or of another shape.
    """
    if not _is_of_generators(family, checkpoint):
        if tokenizer is not None:
            raise UserError(f"{family} is a tokenizer itself: --tokenizer goes with a generator")
        return mt.convert(family, checkpoint, out, config)
    check_target(out, checkpoint)
    generator = _converted(family, checkpoint, config, tokenizer)
    generator.save(out)
    return generator


def _is_of_generators(family: str, checkpoint: str | Path) -> bool:
    """Raises UserError for a family that neither generators nor tokenizers have."""
    from mmgen_tokenizers.pretrained import FAMILIES as TOKENIZERS

    if family not in FAMILIES and family not in TOKENIZERS:
        known = list({**TOKENIZERS, **FAMILIES})
        raise UserError(f"there is no family {family!r}; known: {', '.join(known)}.{nearest(family, known)}")
    if family in TOKENIZERS and family in FAMILIES:  # MaskBit calls both its halves so
        return FAMILIES[family].is_generator(checkpoint)
    return family in FAMILIES


def _converted(family: str, checkpoint: str | Path, config: dict | None, tokenizer: str | Path | None) -> "Generator":
    from mmgen.generator import Generator

    state = read_checkpoint(checkpoint)
    codec = None if tokenizer is None else mt.load(tokenizer)
    if FAMILIES[family] is var:
        if codec is None or codec.family != "multiscale":
            raise UserError("var needs its tokenizer, which its input is made with: convert var-vqvae, then pass --tokenizer")
        model, sampling = var.configure(state, config, codec.config)
        params = adopt(model, var.from_reference(model, state), codec.params["quantizer"])
    else:
        model, sampling = FAMILIES[family].configure(state, config)
        params = FAMILIES[family].from_reference(model, state)
        codec = maskbit.grouped(codec, model) if FAMILIES[family] is maskbit else codec
    if codec is not None and codec.layout.codebook_size != model.layout.codebook_size:
        raise UserError(
            f"the tokenizer in {tokenizer} has {codec.layout.codebook_size} codes, the generator {model.layout.codebook_size}: "
            "they do not belong together"
        )
    return Generator(model, params, codec, sampling=sampling, weights=f"converted from {family}")


def export(generator, out: str | Path, format: str) -> None:
    """Write a generator's weights under a reference's own names, as one safetensors file in the folder `out`."""
    if format not in FORMATS:
        raise UserError(f"there is no export format {format!r}; known: {', '.join(FORMATS)}.{nearest(format, FORMATS)}")
    save_arrays(out, unflatten(FORMATS[format].to_reference(generator.config, generator.params)))
