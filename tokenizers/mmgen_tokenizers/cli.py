"""The command `mmgen-tokenizers`: thin, all work is in the modules. JAX is imported by the verbs that compute."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import Parser, existing, exit_code, json_object, positive
from .errors import UserError, nearest

DESCRIPTION = "Image tokenizers: pictures to integers and back."
EXAMPLE = """example:
  mmgen-tokenizers convert llamagen-vq vq_ds16_c2i.pt --out models/vq16
  mmgen-tokenizers reconstruct photos/ --tokenizer models/vq16 --out grid.png"""
SEEN = 256  # pictures that a palette is chosen by
CARD = 192  # pixels across, at least, of a picture beside its reconstruction: small ones are enlarged


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
    from .pictures import fit

    names, pictures = [], []
    for name, picture in _readable(files):
        names.append(name)
        pictures.append(fit(picture, size))
        if len(pictures) == batch:
            yield names, np.stack(pictures)
            names, pictures = [], []
    if pictures:
        yield names, np.stack(pictures)


def _readable(files: Sequence[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, picture) of those that can be read; the others are named on stderr. UserError where there is none."""
    from .pictures import PictureError, read_picture

    bad = 0
    for file in files:
        try:
            yield str(file), read_picture(file)
        except PictureError as error:
            bad += 1
            print(f"skipped: {error}", file=sys.stderr)
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
    """Turn a folder of pictures into token shards, of any number, a few in memory at a time.

    The folder has metadata.jsonl with file_name and captions, or one folder a class, or just pictures. Where the tokenizer
    takes other shapes than the square, pictures keep theirs but for a margin; --square takes the middle square of each, which
    `mmgen train` needs unless all have one shape. Pictures that cannot be read are named and left out. A run that was
    stopped goes on when it is started again.

    example:
      mmgen-tokenizers encode photos/ --tokenizer models/vq16 --out codes/
    """
    from .shards import ShardReader
    from .streaming import encode_folder

    tokenizer = _loaded(args.tokenizer)
    count, skipped = encode_folder(tokenizer, args.folder, args.out, args.size, args.square, args.caption, args.batch)
    reader = ShardReader(args.out)
    shape = "several shapes (`mmgen train` takes one: --square)" if reader.mixed else str(reader.layout)
    note = f"; {skipped} skipped that cannot be read" if skipped else ""
    print(f"wrote {args.out}: {count} pictures, {shape}{note}")


def decode(args: argparse.Namespace) -> None:
    """Turn ids back into pictures: one PNG each, named by its number and, of token shards, as the picture was.

    CODES is a folder of token shards, or an .npz with "tokens" [N, sites], as `mmgen sample --tokens` writes it.

    example:
      mmgen-tokenizers decode codes/ --tokenizer models/vq16 --out pictures/
    """
    from .streaming import decode_array, decode_shards

    codes = existing(args.codes)
    decoded = decode_array if codes.is_file() else decode_shards
    print(f"wrote {decoded(_loaded(args.tokenizer), codes, args.out, args.batch)} pictures to {args.out}")


def reconstruct(args: argparse.Namespace) -> None:
    """Show what is lost: each picture, its reconstruction and four times their difference, with PSNR and SSIM under them.

    example:
      mmgen-tokenizers reconstruct photo.jpg emoji/ --tokenizer models/vq16 --out grid.png
    """
    from .metrics import psnr, ssim
    from .pictures import enlarged, grid, to_float, to_uint8, with_caption, write_png

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
            card = enlarged(to_uint8(np.concatenate(three, axis=1)), CARD)
            cards.append(with_caption(card, f"{decibels:.1f} dB  {likeness:.3f}"))
        scores += found.tolist()
    mean = np.mean(scores, 0)
    columns = max(1, min(len(cards), 1024 // cards[0].shape[1], 4))
    write_png(args.out, grid(np.stack(cards), columns), {"psnr": f"{mean[0]:.2f}", "ssim": f"{mean[1]:.4f}"})
    print(f"{mean[0]:6.2f} dB  SSIM {mean[1]:.3f}  mean of {len(cards)}; wrote {args.out}")


def evaluate(args: argparse.Namespace) -> None:
    """Measure what a tokenizer keeps of a set of pictures: PSNR, SSIM, use of the codebook; if asked for, rFID and LPIPS.

    Pictures are cut as ADM cuts them, which LlamaGen's rFID follows, reconstructions are rounded to 256 steps, and rFID
    compares them with the same pictures. The weights of InceptionV3 are those of the graph of 2015 under torchvision's names
    (pt_inception-2015-12-05-6726825d.pth), those of LPIPS are vgg16's and the package's linear layers.

    example:
      mmgen-tokenizers evaluate models/vq16 --data imagenet/val --size 256 --inception pt_inception.pth --out rfid.json
    """
    from .evaluation.reconstruction import evaluate as measure
    from .evaluation.results import explain
    from .files import write_json

    for file in (args.data, *filter(None, [args.inception, *(args.lpips or ())])):
        existing(file)
    tokenizer = _loaded(args.tokenizer)
    found = measure(tokenizer, args.data, args.size, args.crop, args.inception, args.lpips, args.save_statistics)
    print(f"{found['pictures']['pictures']} pictures of {args.data}\n{explain(found)}")
    if args.out:
        write_json(args.out, found)
        print(f"wrote {args.out}")


def convert(args: argparse.Namespace) -> None:
    """Convert published weights (safetensors, .pt, .pth, .ckpt, .bin: torch is not needed, nothing in the file is run).

    `mmgen-tokenizers list` names the families. The weights say most of the configuration; --config takes the reference's own
    keys for the rest, says which of them it ignores, and refuses those that the family does not know. --check compares with
    what the reference's layers gave for a picture, names the first that diverges and then writes nothing; what the .npz holds
    stands in the README, under "How to add one".

    example:
      mmgen-tokenizers convert llamagen-vq vq_ds16_c2i.pt --out models/vq16
    """
    from .api import convert as convert_checkpoint
    from .files import check_free, check_target

    check_free(args.out, args.overwrite)
    check_target(args.out, args.checkpoint)
    tokenizer = convert_checkpoint(args.family, existing(args.checkpoint), config=json_object(args.config))
    if args.check:
        from .pretrained.check import explain, table_of

        print(explain(tokenizer, table_of(tokenizer), existing(args.check)))
    tokenizer.save(args.out)
    print(f"wrote {args.out}: {tokenizer}")


def pixels(args: argparse.Namespace) -> None:
    """Make the tokenizer whose tokens are the pixels themselves, for exact bits per dimension: nothing to train.

    Each pixel is three ids of 256 values; with --palette it is one of so many colours, chosen by the pictures of a folder.

    example:
      mmgen-tokenizers pixels --size 32 --palette 64 --pictures photos/ --out models/pixels
    """
    from .api import Tokenizer
    from .families.pixels import Pixels, choose_palette
    from .files import check_free

    check_free(args.out, args.overwrite)
    if (args.palette is None) != (args.pictures is None):
        raise UserError("--palette and --pictures go together: so many colours, by the pictures of that folder")
    palette = ()
    if args.palette is not None:
        files = _picture_files([args.pictures])
        palette = choose_palette((picture for _, picture in _readable(files[:: -(-len(files) // SEEN)])), args.palette)
    tokenizer = Tokenizer(Pixels(palette, args.size), {})
    tokenizer.save(args.out)
    print(f"wrote {args.out}: {tokenizer}")


def pull(args: argparse.Namespace) -> None:
    """Fetch published weights through huggingface_hub (extra `hub`): of one commit, resumable, checked by their hash.

    NAME is one that `list` shows. Without --revision the commit is the newest one at the first time and the same ever after:
    pulled.json beside the file notes it, and the hash of what came. The page of a file shows both.

    example:
      mmgen-tokenizers pull VQ-16 --out weights
      mmgen-tokenizers pull FoundationVision/LlamaGen vq_ds16_c2i.pt --revision COMMIT --sha256 HASH --out weights
    """
    from .hub import pull as fetch
    from .pretrained.published import PUBLISHED, file_of

    repo, file = (args.weights, args.file) if args.file else file_of(args.weights)
    path, revision, found = fetch(repo, file, args.out, args.revision, args.sha256)
    print(f"wrote {path}: {file} of {repo} at commit {revision}")
    print(f"SHA-256 {found}, {'as asked for' if args.sha256 else 'unchecked but for what the server says'}")
    if not args.file:
        print(f"next: mmgen-tokenizers convert {PUBLISHED[args.weights].family} {path} --out DIR")


def info(args: argparse.Namespace) -> None:
    """Describe a tokenizer: family, size, layout, fingerprint, configuration.

    example:
      mmgen-tokenizers info models/vq16
    """
    from .api import load
    from .configs import to_json

    tokenizer = load(args.folder)
    print(f"{args.folder}: {tokenizer}")
    print(f"source       {tokenizer.source or 'trained here'}")
    print(f"fingerprint  {tokenizer.fingerprint}")
    print(f"config       {json.dumps(to_json(tokenizer.config), indent=2)}")


def list_families(args: argparse.Namespace) -> None:
    """List the published tokenizers: those that `convert` reads, how far each conversion was verified, and those not yet.

    example:
      mmgen-tokenizers list
    """
    from .pretrained.published import LEGEND, markdown, plain

    print(markdown() if args.markdown else f"{plain()}\n\n{LEGEND}")


# The command line --------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "encode": encode,
    "decode": decode,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "convert": convert,
    "pixels": pixels,
    "pull": pull,
    "info": info,
    "list": list_families,
}


def parser(verb: str) -> Parser:
    text = "\n".join(line.removeprefix("    ") for line in VERBS[verb].__doc__.strip().splitlines())
    p = Parser(f"mmgen-tokenizers {verb}", text)
    if verb == "reconstruct":
        p.add_argument("pictures", nargs="+", metavar="PICTURE", help="files or folders")
    if verb == "encode":
        p.add_argument("folder", metavar="FOLDER", help="of pictures")
        p.add_argument("--square", action="store_true", help="the middle square of each picture, whatever its shape")
        p.add_argument("--caption", default="text", metavar="KEY", help="of the captions in metadata.jsonl (text)")
    if verb in ("encode", "reconstruct"):
        p.add_argument("--size", type=positive, metavar="PIXELS", help="the shorter side; the training resolution unless given")
    if verb == "evaluate":
        evaluate_arguments(p)
    if verb == "decode":
        p.add_argument("codes", metavar="CODES", help="folder of token shards, or FILE.npz with tokens")
    if verb in ("encode", "decode", "reconstruct"):
        p.add_argument("--tokenizer", required=True, metavar="DIR", help="an exported or converted folder, or a run folder")
        p.add_argument("--batch", type=positive, default=64, metavar="N", help="pictures in memory at a time (64)")
        written = {"encode": "DIR", "decode": "DIR", "reconstruct": "FILE.png"}[verb]
        p.add_argument("--out", required=True, metavar=written)
    if verb == "convert":
        p.add_argument("family", metavar="FAMILY", help="for example llamagen-vq")
        p.add_argument("checkpoint", metavar="CHECKPOINT")
        p.add_argument("--out", required=True, metavar="DIR")
        p.add_argument("--config", metavar="FILE.json", help="the reference's own keys")
        p.add_argument("--check", metavar="IO.npz", help="what the reference's layers gave")
    if verb == "pull":
        pull_arguments(p)
    if verb == "pixels":
        p.add_argument("--size", type=positive, default=32, metavar="PIXELS", help="side of the pictures to train on (32)")
        p.add_argument("--palette", type=int, metavar="N", help="colours, instead of 8 bits a channel")
        p.add_argument("--pictures", metavar="FOLDER", help="that the colours are chosen by")
        p.add_argument("--out", required=True, metavar="DIR")
    if verb in ("convert", "pixels"):
        p.add_argument("--overwrite", action="store_true", help="replace the model that DIR holds")
    if verb == "list":
        p.add_argument("--markdown", action="store_true", help="as the table of the README")
    if verb == "info":
        p.add_argument("folder", metavar="DIR")
    return p


def evaluate_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("tokenizer", metavar="TOKENIZER", help="an exported or converted folder, or a run folder")
    p.add_argument("--data", required=True, metavar="FOLDER|FILE.npz", help="pictures, or uint8 arr_0 [N, H, W, 3]")
    p.add_argument("--size", type=positive, metavar="PIXELS", help="of the squares; the training resolution unless given")
    p.add_argument("--crop", choices=("adm", "lanczos"), default="adm", help="how they are cut (adm)")
    p.add_argument("--inception", metavar="FILE", help="weights of InceptionV3, for rFID")
    p.add_argument("--lpips", nargs="+", metavar="FILE", help="weights of LPIPS")
    p.add_argument("--out", metavar="FILE.json", help="the figures and all they depend on")
    p.add_argument("--save-statistics", metavar="FILE.npz", help="of the originals, for later")


def pull_arguments(p: argparse.ArgumentParser) -> None:
    """Those of `pull`, here and of mmgen."""
    p.add_argument(
        "weights", metavar="NAME or REPO", help="weights that `mmgen-tokenizers list` shows, or OWNER/NAME of a repository"
    )
    p.add_argument("file", nargs="?", metavar="FILE", help="its path in the repository, if one is named")
    p.add_argument(
        "--revision", metavar="COMMIT", help="40 hexadecimal digits (the commit noted beside the file, or the newest)"
    )
    p.add_argument("--sha256", metavar="HASH", help="64 hexadecimal digits")
    p.add_argument("--out", default=".", metavar="DIR", help="folder to write into (this one)")


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
    """Returns the exit code."""
    return exit_code(run, arguments)
