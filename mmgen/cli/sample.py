"""Draw pictures from a trained, exported or converted model.

The same seed gives the same pictures, whatever else is drawn with them (in float32). Settings that are not given are those
recommended with the model. A class model without --label goes through all of its classes, evenly. RUN comes first: --prompt
and --label take all words that follow. A job that was stopped, by ctrl-C or by force, goes on when the same command is given
again (but for a grid).

With --best-of N, N candidates are drawn for each picture and the one is kept that --scorer likes best: a Python function of
(pictures uint8 [B, H, W, 3], prompts or labels) that gives B numbers. With --best-at it also sees candidates after these steps
of the model's order, what is missing filled up, and the worse half is given up.

example:
  mmgen sample runs/quickstart/generator --prompt 'a small red circle above a large blue square' -n 4 --out circles.png
  mmgen sample models/gpt_b --label 207 --label 360 -n 8 --guidance 4 --out pictures/
  mmgen sample runs/quickstart/generator --prompts thousand.txt --out pictures/
  mmgen sample runs/quickstart/generator --prompts thousand.txt --best-of 4 --scorer mmgen.evaluation.shapes:score --out best/
  mmgen sample models/gpt_b --num 50000 --npz samples.npz        uint8 [N, H, W, 3] under arr_0, for FID suites
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmgen_tokenizers.errors import UserError

from mmgen.cli.parsing import Parser, existing

if TYPE_CHECKING:
    from mmgen.best import BestOf

SETTINGS = ("guidance", "guidance_schedule", "temperature", "top_k", "top_p", "steps", "choice_temperature")
DECODING = ("decoder", "window", "init", "coupling")


def parser() -> Parser:
    p = Parser("mmgen sample", __doc__)
    p.add_argument("run", metavar="RUN", help="a generator's run folder, or an exported or converted one")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--prompt", action="append", nargs="+", metavar="T", help="a text; may be given several times")
    what.add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    what.add_argument("--label", action="append", nargs="+", metavar="K", help="a class by number or name; several are allowed")
    p.add_argument("-n", "--num", type=int, metavar="N", help="pictures for each prompt or label (1), or in all (up to 64)")
    add_settings(p)
    p.add_argument("--decoder", metavar="NAME", help="autoregressive; or the same in fewer forwards: jacobi, speculative")
    p.add_argument("--window", type=_window, metavar="W", help="sites a forward computes: a number or auto (default: auto)")
    p.add_argument("--init", metavar="NAME", help="what jacobi begins from: left, upper, law or uniform (default: law)")
    p.add_argument("--coupling", metavar="NAME", help="maximal: fewer forwards, other pictures of the same distribution")
    p.add_argument("--draft", metavar="DIR", help="a smaller generator of the same tokenizer, for --decoder speculative")
    p.add_argument("--best-of", type=int, metavar="N", help="candidates for each picture, of which --scorer keeps the best")
    p.add_argument("--scorer", metavar="MODULE:FUNCTION", help="gives each picture of a batch a number, the higher the better")
    p.add_argument("--best-at", type=int, nargs="+", metavar="T", help="also after these steps keep the better half of them")
    p.add_argument("--out", metavar="FILE.png|DIR", help="one grid, or one file a picture (default: samples.png)")
    p.add_argument("--tokens", metavar="FILE.npz", help="also write the token ids, int32 [N, sites]")
    p.add_argument("--npz", metavar="FILE.npz", help="write all pictures as one uint8 array")
    return p


def add_settings(p: Parser) -> None:
    """What says how tokens are drawn."""
    p.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    p.add_argument("--guidance", type=float, metavar="G", help="classifier-free guidance; 1: none")
    p.add_argument("--guidance-schedule", metavar="NAME", help="constant, linear or power_cosine:P")
    p.add_argument("--temperature", type=float, metavar="T")
    p.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; 1: always the most likely")
    p.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens that hold P of the probability")
    p.add_argument("--steps", type=int, metavar="T", help="rounds of a masked model")
    p.add_argument("--choice-temperature", type=float, metavar="T", help="of a masked model: how freely it fills")
    p.add_argument("--mesh.tensor", type=int, metavar="N", help="devices that share the weights and each picture (default: 1)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: float32 on a CPU, else bfloat16)")


def tensor_of(args: argparse.Namespace) -> int:
    given = getattr(args, "mesh.tensor")
    return 1 if given is None else given


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    existing(args.run)

    from mmgen_tokenizers.cache import use_compilation_cache

    from mmgen import samples

    use_compilation_cache()
    settings = {name: getattr(args, name) for name in SETTINGS + DECODING}
    samples.sample(
        args.run,
        prompts=samples.read_prompts(existing(args.prompts)) if args.prompts else _prompts(args.prompt),
        labels=_flat(args.label),
        num=args.num,
        seed=args.seed,
        out=args.out,
        tokens=args.tokens,
        npz=args.npz,
        dtype=args.dtype,
        tensor=tensor_of(args),
        draft=existing(args.draft) if args.draft else None,
        best=_best(args),
        **settings | {"guidance_schedule": samples.schedule(args.guidance_schedule)},
    )


def _best(args: argparse.Namespace) -> "BestOf | None":
    from mmgen.best import BestOf

    if (args.best_of is None) != (args.scorer is None) or (args.best_at and args.best_of is None):
        raise UserError("--best-of N and --scorer module:function go together, and --best-at with both")
    return None if args.best_of is None else BestOf(args.best_of, args.scorer, tuple(args.best_at or ()))


def _window(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _prompts(lists: list[list[str]] | None) -> list[str] | None:
    for texts in lists or ():
        if len(texts) > 1 and not any(" " in text for text in texts):
            words = " ".join(texts)
            warnings.warn(f"taken for {len(texts)} prompts of one word; quote what is one: --prompt {words!r}", stacklevel=2)
    return _flat(lists)


def _flat(lists: list[list[str]] | None) -> list[str] | None:
    return None if lists is None else [item for items in lists for item in items]
