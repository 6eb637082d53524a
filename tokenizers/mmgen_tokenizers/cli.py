"""The command `mmgen-tokenizers`: thin, all work is in the modules. JAX is imported by the verbs that compute."""

import argparse
import errno
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import Parser, existing, json_object
from .errors import UserError, is_full_disk, nearest, plain_warnings

DESCRIPTION = "Image tokenizers: pictures to integers and back."
EXAMPLE = """example:
  mmgen-tokenizers convert llamagen-vq vq_ds16_c2i.pt --out models/vq16
  mmgen-tokenizers reconstruct photos/ --tokenizer models/vq16 --out grid.png"""


# Pictures ----------------------------------------------------------------------------------------------------------


def _picture_files(paths: Sequence[str]) -> list[Path]:
    """The files named, and those in the folders named that begin like a picture, in alphabetical order."""
    from .pictures import is_picture

    files: list[Path] = []
    for path in map(existing, paths):
        files += sorted(p for p in path.rglob("*") if p.is_file() and is_picture(p)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"no picture in {', '.join(paths)}")
    return files


def _batches(files: Sequence[Path], size: int, batch: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names, uint8 [B, size, size, 3]) of the pictures that can be read; the others are named on stderr."""
    from .pictures import PictureError, fit, read_picture

    names, pictures, bad = [], [], 0
    for file in files:
        try:
            pictures.append(fit(read_picture(file), size))
            names.append(str(file))
        except PictureError as error:
            bad += 1
            print(f"skipped: {error}", file=sys.stderr)
        if len(pictures) == batch:
            yield names, np.stack(pictures)
            names, pictures = [], []
    if pictures:
        yield names, np.stack(pictures)
    if bad:
        print(f"{bad} of {len(files)} pictures skipped", file=sys.stderr)
    if bad == len(files):
        raise UserError("none of the pictures can be read")


# Verbs -------------------------------------------------------------------------------------------------------------


def _loaded(folder: str) -> Any:
    """The tokenizer of a command that computes with it."""
    from .api import load
    from .cache import use_compilation_cache

    use_compilation_cache()
    return load(folder)


def encode(args: argparse.Namespace) -> None:
    """Turn pictures into ids: one .npz with `ids` int32 [pictures, N], `names`, `height`, `width` (of the grid), `fingerprint`.

    A picture is scaled and cropped to a square. Pictures that cannot be read are named and left out.

    example:
      mmgen-tokenizers encode photos/ --tokenizer models/vq16 --out codes.npz
    """
    tokenizer = _loaded(args.tokenizer)
    size = args.size or tokenizer.config.image_size
    layout = tokenizer.layout_for(size, size)
    names, ids = [], []
    for part, pictures in _batches(_picture_files(args.pictures), size, args.batch):
        names += part
        ids.append(tokenizer.encode(pictures))
        print(f"\r{len(names)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    arrays = {"ids": np.concatenate(ids), "names": np.array(names), "height": layout.height, "width": layout.width}
    _save_npz(args.out, arrays | {"fingerprint": np.array(tokenizer.fingerprint)})
    print(f"wrote {args.out}: ids {list(arrays['ids'].shape)}, {layout.codebook_size} codes")


def decode(args: argparse.Namespace) -> None:
    """Turn ids back into pictures: one PNG each, named as the pictures were.

    CODES.npz is what `encode` wrote, or any .npz with `ids` [pictures, N] (and `height`, `width` of a grid
    that is not square).

    example:
      mmgen-tokenizers decode codes.npz --tokenizer models/vq16 --out pictures/
    """
    from .pictures import write_png

    tokenizer, codes = _loaded(args.tokenizer), _load_npz(args.codes)
    made_by = str(codes.get("fingerprint", tokenizer.fingerprint))
    if made_by != tokenizer.fingerprint:
        raise UserError(
            f"{args.codes} was made by another tokenizer ({made_by}) than {args.tokenizer} ({tokenizer.fingerprint})"
        )
    layout = None
    if "height" in codes and "width" in codes:
        layout = _layout_of(tokenizer, int(codes["height"]), int(codes["width"]))
    ids = codes["ids"]
    stems = [Path(str(name)).stem for name in codes["names"]] if "names" in codes else [""] * len(ids)
    for start in range(0, len(ids), args.batch):
        for i, picture in enumerate(tokenizer.decode(ids[start : start + args.batch], layout), start):
            write_png(Path(args.out) / f"{i:05d}{'_' if stems[i] else ''}{stems[i]}.png", picture)
    print(f"wrote {len(ids)} pictures to {args.out}")


def _layout_of(tokenizer: Any, height: int, width: int) -> Any:
    """The layout that has so many rows and columns of ids."""
    here = tokenizer.layout
    factor = tokenizer.config.image_size // here.height
    same = (height, width) == (here.height, here.width)
    return here if same else tokenizer.layout_for(height * factor, width * factor)


def reconstruct(args: argparse.Namespace) -> None:
    """Show what is lost: each picture, its reconstruction and four times their difference, with PSNR and SSIM under them.

    example:
      mmgen-tokenizers reconstruct photo.jpg emoji/ --tokenizer models/vq16 --out grid.png
    """
    from .metrics import psnr, ssim
    from .pictures import grid, to_float, to_uint8, with_caption, write_png

    tokenizer = _loaded(args.tokenizer)
    size = args.size or tokenizer.config.image_size
    layout = tokenizer.layout_for(size, size)
    cards, scores = [], []
    for names, pictures in _batches(_picture_files(args.pictures), size, args.batch):
        again = tokenizer.decode(tokenizer.encode(pictures), layout)
        before = to_float(pictures)
        difference = np.minimum(4 * np.abs(before - again) - 1, 1)
        found = np.stack([psnr(before, again), ssim(before, again)], 1)
        for name, *three, (decibels, likeness) in zip(names, before, again, difference, found, strict=True):
            print(f"{decibels:6.2f} dB  {likeness:.3f}  {name}")
            cards.append(with_caption(to_uint8(np.concatenate(three, axis=1)), f"{decibels:.1f} dB {likeness:.3f}"))
        scores += found.tolist()
    mean = np.mean(scores, 0)
    columns = max(1, min(len(cards), 1024 // (3 * size), 4))
    write_png(args.out, grid(np.stack(cards), columns), {"psnr": f"{mean[0]:.2f}", "ssim": f"{mean[1]:.4f}"})
    print(f"{mean[0]:6.2f} dB  SSIM {mean[1]:.3f}  mean of {len(cards)}; wrote {args.out}")


def convert(args: argparse.Namespace) -> None:
    """Convert published weights (safetensors, .pt, .pth, .ckpt, .bin: torch is not needed, nothing in the file is run).

    `mmgen-tokenizers list` names the families. The weights say most of the configuration; --config takes the reference's own
    keys for the rest, says which of them it ignores, and refuses those that the family does not know.

    example:
      mmgen-tokenizers convert llamagen-vq vq_ds16_c2i.pt --out models/vq16
    """
    from .api import convert as convert_checkpoint

    tokenizer = convert_checkpoint(args.family, existing(args.checkpoint), args.out, json_object(args.config))
    print(f"wrote {args.out}: {_summary(tokenizer)}")


def info(args: argparse.Namespace) -> None:
    """Describe a tokenizer: family, size, layout, fingerprint, configuration.

    example:
      mmgen-tokenizers info models/vq16
    """
    from .api import load
    from .configs import to_json

    tokenizer = load(args.folder)
    print(f"{args.folder}: {_summary(tokenizer)}")
    print(f"source       {tokenizer.source or 'trained here'}")
    print(f"fingerprint  {tokenizer.fingerprint}")
    print(f"config       {json.dumps(to_json(tokenizer.config), indent=2)}")


def _summary(tokenizer: Any) -> str:
    import jax

    layout, size = tokenizer.layout, tokenizer.config.image_size
    count = sum(leaf.size for leaf in jax.tree.leaves(tokenizer.params))
    return f"{tokenizer.family}, {count / 1e6:.2f}M parameters, {size} x {size} pixels -> {layout}"


def list_families(args: argparse.Namespace) -> None:
    """List the families of published weights, their presets, and how far each conversion was verified.

    example:
      mmgen-tokenizers list
    """
    from .pretrained import FAMILIES, PUBLISHED

    print(f"families of `convert`: {', '.join(FAMILIES)}\n")
    width = max(map(len, PUBLISHED)) + 2
    print(f"{'weights':<{width}}{'family':<17}{'licence':<15}{'ids at 256 px':>13}{'codes':>8}{'rFID':>6}  verified by")
    for name, (family, licence, ids, codes, fid, verified) in PUBLISHED.items():
        published = "-" if fid is None else f"{fid:.2f}"
        print(f"{name:<{width}}{family:<17}{licence:<15}{ids:>13}{codes:>8}{published:>6}  {verified}")


def _save_npz(path: str, arrays: dict[str, Any]) -> None:
    """Whole or not at all."""
    import io

    from .files import write_atomically

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _load_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(existing(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile):
        raise UserError(f"{path} is no .npz file") from None
    if "ids" not in arrays or arrays["ids"].ndim not in (2, 3):
        holds = ", ".join(arrays) or "nothing"
        raise UserError(f"{path} has no array `ids` [pictures, N] or [pictures, N, groups]; it holds {holds}")
    return arrays


# The command line --------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "encode": encode,
    "decode": decode,
    "reconstruct": reconstruct,
    "convert": convert,
    "info": info,
    "list": list_families,
}


def parser(verb: str) -> Parser:
    text = "\n".join(line.removeprefix("    ") for line in VERBS[verb].__doc__.strip().splitlines())
    p = Parser(f"mmgen-tokenizers {verb}", text)
    if verb in ("encode", "reconstruct"):
        p.add_argument("pictures", nargs="+", metavar="PICTURE", help="files or folders")
        p.add_argument("--size", type=int, metavar="PIXELS", help="side of the square; the training resolution unless given")
    if verb == "decode":
        p.add_argument("codes", metavar="CODES.npz")
    if verb in ("encode", "decode", "reconstruct"):
        p.add_argument("--tokenizer", required=True, metavar="DIR", help="an exported or converted folder, or a run folder")
        p.add_argument("--batch", type=int, default=64, metavar="N", help="pictures in memory at a time (64)")
        written = {"encode": "FILE.npz", "decode": "DIR", "reconstruct": "FILE.png"}[verb]
        p.add_argument("--out", required=True, metavar=written)
    if verb == "convert":
        p.add_argument("family", metavar="FAMILY", help="for example llamagen-vq")
        p.add_argument("checkpoint", metavar="CHECKPOINT")
        p.add_argument("--out", required=True, metavar="DIR")
        p.add_argument("--config", metavar="FILE.json", help="the reference's own keys")
    if verb == "info":
        p.add_argument("folder", metavar="DIR")
    return p


def usage() -> str:
    verbs = "\n".join(f"  {name:<13}{function.__doc__.strip().splitlines()[0]}" for name, function in VERBS.items())
    about = "mmgen-tokenizers VERB --help describes a verb, with an example."
    return f"usage: mmgen-tokenizers VERB ...\n\n{DESCRIPTION}\n\n{verbs}\n\n{about}\n\n{EXAMPLE}"


def run(arguments: Sequence[str]) -> None:
    """Runs one command line; every mistake of the user's is a UserError."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
    elif verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}: mmgen-tokenizers {', '.join(VERBS)}.{nearest(verb, VERBS)}")
    else:
        VERBS[verb](parser(verb).parse_args(rest))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for what the user can mend."""
    plain_warnings()
    try:
        run(sys.argv[1:] if arguments is None else arguments)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except (OSError, ValueError, RuntimeError) as error:
        full = is_full_disk(error)
        if not full and getattr(error, "errno", None) not in (errno.EACCES, errno.EISDIR, errno.ENOTDIR):
            raise
        print(f"error: {'the disk is full: free space and start again' if full else error}", file=sys.stderr)
    return 2
