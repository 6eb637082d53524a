"""Published checkpoints -> a folder that `mmgen.load` reads, and back: one file a family."""

from pathlib import Path

from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import check_target, read_checkpoint, save_arrays, unflatten

from mmgen.model.inputs import adopt
from mmgen.pretrained import llamagen, maskbit, nar, rar, var

FAMILIES = {"llamagen-gpt": llamagen, "maskbit": maskbit, "nar": nar, "rar": rar, "var": var}
FORMATS = {name.removesuffix("-gpt"): module for name, module in FAMILIES.items()}  # of export


def convert(
    family: str, checkpoint: str | Path, out: str | Path, config: dict | None = None, tokenizer: str | Path | None = None
):
    """Write `checkpoint` (safetensors, .pt, .pth, .ckpt) of a family in our form to `out` and return the Generator.

    `config`: the family's own keys, where the weights do not say it all. `tokenizer`: a folder, copied into `out`.
    Raises UserError that lists tensors which are missing, unknown or of another shape.
    """
    import mmgen_tokenizers as mt

    from mmgen.generator import Generator

    if family not in FAMILIES:
        raise UserError(f"there is no family {family!r}; known: {', '.join(FAMILIES)}.{nearest(family, FAMILIES)}")
    check_target(out, checkpoint)
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
    generator = Generator(model, params, codec, sampling=sampling, weights=f"converted from {family}")
    generator.save(out)
    return generator


def export(generator, out: str | Path, format: str) -> None:
    """Write a generator's weights under a reference's own names, as one safetensors file in the folder `out`."""
    if format not in FORMATS:
        raise UserError(f"there is no export format {format!r}; known: {', '.join(FORMATS)}.{nearest(format, FORMATS)}")
    save_arrays(out, unflatten(FORMATS[format].to_reference(generator.config, generator.params)))
