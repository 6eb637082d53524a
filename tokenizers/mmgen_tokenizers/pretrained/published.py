"""The published tokenizers of discrete tokens that we know: those that `convert` reads, and those that it does not yet."""

from typing import NamedTuple

from ..errors import UserError, nearest

NUMBERS, SHAPES = "numbers", "shapes"
BOTH = f"{NUMBERS}, {SHAPES}"
LEGEND = (
    "numbers: a small model with the same switches gives the ids, pictures and activations of the reference's code.\n"
    "shapes: at full size all names and shapes are those that the reference's code makes.\n"
    "Ids are those of 256 x 256 pixels; rFID is the authors', on ImageNet's validation set at that size, or zero-shot (zs)."
)


class Weights(NamedTuple):
    family: str | None  # for `convert`; None: not supported yet
    licence: str  # of the weights
    ids: int | str  # "256 x 8": sub-tokens
    codes: int | str
    rfid: float | str | None  # None: not published
    verified: str = ""


PUBLISHED = {
    "VQ-16": Weights("llamagen-vq", "MIT", 256, 16384, 2.19, BOTH),
    "VQ-8": Weights("llamagen-vq", "MIT", 1024, 16384, 0.59, SHAPES),
    "taming-f16-1024": Weights("taming-vqgan", "MIT", 256, 1024, 7.94, BOTH),
    "taming-f16-16384": Weights("taming-vqgan", "MIT", 256, 16384, 4.98, BOTH),
    "chameleon": Weights("chameleon-vqgan", "research only", 256, 8192, None, SHAPES),
    "maskgit-f16-256": Weights("maskgit-vqgan", "Apache-2.0", 256, 1024, 2.28, BOTH),
    "IBQ-1024": Weights("ibq", "Apache-2.0", 256, 1024, 2.24, BOTH),
    "IBQ-8192": Weights("ibq", "Apache-2.0", 256, 8192, 1.87, NUMBERS),
    "IBQ-16384": Weights("ibq", "Apache-2.0", 256, 16384, 1.37, BOTH),
    "IBQ-262144": Weights("ibq", "Apache-2.0", 256, 262144, 1.00, BOTH),
    "Open-MAGVIT2-256": Weights("open-magvit2", "Apache-2.0", 256, 2**18, 1.17, BOTH),
    "Open-MAGVIT2-128": Weights("open-magvit2", "Apache-2.0", 1024, 2**18, 0.34, SHAPES),
    "Open-MAGVIT2-16384-pretrain": Weights("open-magvit2", "Apache-2.0", 256, 2**14, 2.55, SHAPES),
    "MaskBit-10bit": Weights("maskbit", "Apache-2.0", 256, 2**10, 1.76, NUMBERS),
    "MaskBit-12bit": Weights("maskbit", "Apache-2.0", 256, 2**12, 1.52, NUMBERS),
    "MaskBit-14bit": Weights("maskbit", "Apache-2.0", 256, 2**14, 1.37, NUMBERS),
    "MaskBit-16bit": Weights("maskbit", "Apache-2.0", 256, 2**16, 1.29, NUMBERS),
    "MaskBit-18bit": Weights("maskbit", "Apache-2.0", 256, 2**18, 1.16, NUMBERS),
    "VAR": Weights("var-vqvae", "MIT", 680, 4096, 0.90, BOTH),
    "BSQ-ViT-18": Weights("bsq-vit", "MIT", 1024, 2**18, 1.34, BOTH),
    "BSQ-ViT-36": Weights("bsq-vit", "MIT", "1024 x 2", 2**18, 0.41, BOTH),
    "TiTok-L-32": Weights("titok", "Apache-2.0", 32, 4096, 2.21, BOTH),
    "TiTok-B-64": Weights("titok", "Apache-2.0", 64, 4096, 1.70, BOTH),
    "TiTok-S-128": Weights("titok", "Apache-2.0", 128, 4096, 1.71, BOTH),
    "TiTok-BL-64-VQ": Weights("titok", "Apache-2.0", 64, 8192, 2.06, BOTH),
    "TiTok-BL-128-VQ": Weights("titok", "Apache-2.0", 128, 8192, 1.49, BOTH),
    "TiTok-SL-256-VQ": Weights("titok", "Apache-2.0", 256, 8192, 1.03, BOTH),
}

KNOWN = {
    "BAR-FSQ-10bit": Weights(None, "Apache-2.0", 256, "2^10", 1.25),
    "BAR-FSQ-32bit": Weights(None, "Apache-2.0", 256, "2^32", 0.33),
    "Cosmos-DI16": Weights(None, "NVIDIA Open Model", 256, 64000, "4.57 zs"),
    "Cosmos-DI8": Weights(None, "NVIDIA Open Model", 1024, 64000, "0.87 zs"),
    "ELM-BAE (16, 20, 24 bits)": Weights(None, "none given", 256, "2^16 to 2^24", None),
    "FlexTok-d18-d28": Weights(None, "non-commercial", "1 to 256", 64000, 1.45),
    "FlexVAE (FlexVAR)": Weights(None, "MIT", "any scales", 8912, None),
    "FlowMo-Lo": Weights(None, "Apache-2.0", 256, "2^18", 0.95),
    "FlowMo-Hi": Weights(None, "Apache-2.0", 256, "2^56", 0.56),
    "GigaTok-S-S": Weights(None, "MIT", 256, 16384, 1.01),
    "GigaTok-B-L": Weights(None, "MIT", 256, 16384, 0.81),
    "Infinity-d32": Weights(None, "MIT", "521 or 680", "2^32", 0.61),
    "L24-SQ": Weights(None, "MIT", 1024, 196560, 0.83),
    "MGVQ-f16-G8": Weights(None, "none given", "256 x 8", 16384, 0.49),
    "One-D-Piece-L": Weights(None, "Apache-2.0", "1 to 256", 4096, 1.08),
    "RQ-VAE 8x8x4": Weights(None, "CC-BY-NC-SA-4.0", "64 x 4", 16384, 4.73),
    "TA-TiTok-BL-128-VQ": Weights(None, "Apache-2.0", 128, 8192, 1.53),
    "TokenFlow": Weights(None, "Apache-2.0", 680, 32768, 1.37),
    "UniTok": Weights(None, "MIT", "256 x 8", 4096, 0.41),
    "ViT-VQGAN (base, small)": Weights(None, "MIT", 1024, 8192, None),
    "WeTok-f16-32bit": Weights(None, "Apache-2.0", "256 x 4", 256, "0.60 zs"),
    "XQ-GAN VQ-8192": Weights(None, "non-commercial", 256, 8192, 0.81),
}

TITOK = {
    "L-32": "l32",
    "B-64": "b64",
    "S-128": "s128",
    "BL-64-VQ": "bl64_vq8k",
    "BL-128-VQ": "bl128_vq8k",
    "SL-256-VQ": "sl256_vq8k",
}
FILES = {  # on the Hugging Face hub, as their authors' pages or code name them: repository, file
    "VQ-16": ("FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
    "VQ-8": ("FoundationVision/LlamaGen", "vq_ds8_c2i.pt"),
    "maskgit-f16-256": ("fun-research/TiTok", "maskgit-vqgan-imagenet-f16-256.bin"),
    **{f"IBQ-{n}": (f"TencentARC/IBQ-Tokenizer-{n}", f"imagenet256_{n}.ckpt") for n in (1024, 8192, 16384, 262144)},
    "Open-MAGVIT2-256": ("TencentARC/Open-MAGVIT2-Tokenizer-256-resolution", "imagenet_256_L.ckpt"),
    "Open-MAGVIT2-128": ("TencentARC/Open-MAGVIT2-Tokenizer-128-resolution", "imagenet_128_L.ckpt"),
    "Open-MAGVIT2-16384-pretrain": ("TencentARC/Open-MAGVIT2-Tokenizer-16384-Pretrain", "pretrain256_16384.ckpt"),
    **{
        f"MaskBit-{n}bit": (f"markweber/maskbit_tokenizer_{n}bit", f"maskbit_tokenizer_{n}bit.bin")
        for n in (10, 12, 14, 16, 18)
    },
    "VAR": ("FoundationVision/var", "vae_ch160v4096z32.pth"),
    **{
        f"TiTok-{name}": (f"yucornetto/tokenizer_titok_{theirs}_imagenet", "model.safetensors")
        for name, theirs in TITOK.items()
    },
}
ELSEWHERE = {  # family -> the page that links them
    "taming-vqgan": "github.com/CompVis/taming-transformers",
    "chameleon-vqgan": "github.com/facebookresearch/chameleon",
    "bsq-vit": "github.com/zhaoyue-zephyrus/bsq-vit",
}


def file_of(name: str) -> tuple[str, str]:
    """The repository on the Hugging Face hub and the file there of weights that can be converted. Raises UserError."""
    if name in FILES:
        return FILES[name]
    if name in KNOWN:
        raise UserError(f"{name} is known, but not supported yet: mmgen-tokenizers list says which are")
    if name in PUBLISHED:
        raise UserError(f"{name} is not on the Hugging Face hub: see {ELSEWHERE[PUBLISHED[name].family]}")
    if "/" in name:
        raise UserError(f"name the file too: pull {name} FILE")
    raise UserError(f"there are no weights {name!r}: mmgen-tokenizers list shows all.{nearest(name, FILES)}")


HEAD = ("weights", "family", "licence", "ids", "codes", "rFID", "verified by")


def cells() -> list[tuple[str, ...]]:
    """The table's rows as text, those that cannot be converted yet behind the others."""
    rows = []
    for name, (family, licence, ids, codes, rfid, verified) in {**PUBLISHED, **KNOWN}.items():
        published = f"{rfid:.2f}" if isinstance(rfid, float) else rfid or "-"
        rows.append((name, family or "not yet", licence, str(ids), str(codes), published, verified or "-"))
    return rows


def plain() -> str:
    """The table in columns."""
    rows = [HEAD, *cells()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown() -> str:
    """The table as the README has it."""
    rows = [HEAD, ("---",) * len(HEAD), *cells()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
