"""Draw a part of a picture anew, or continue it beyond its edges.

MASK.png has the size of IMAGE and is white where the picture is to be drawn anew. The picture is scaled and cropped to the
model's size; what is kept keeps its pixels. Masked, random-order and next-scale models redraw any part; next-token models can
only continue downwards. Without --label or --prompt only the kept part says what is drawn.

example:
  mmgen edit models/maskbit photo.png --mask hole.png --label 207 --out filled.png
  mmgen edit models/var_d16 photo.png --extend left=64 --extend right=64 --out wide.png
"""

from collections.abc import Sequence

from mmgen_tokenizers.errors import UserError

from mmgen.cli.parsing import Parser, existing
from mmgen.cli.sample import SETTINGS, add_settings, tensor_of

SIDES = ("left", "right", "top", "bottom")


def parser() -> Parser:
    p = Parser("mmgen edit", __doc__)
    p.add_argument("run", metavar="RUN", help="a generator's run folder, or an exported or converted one")
    p.add_argument("image", metavar="IMAGE")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--mask", metavar="MASK.png", help="white where the picture is to be drawn anew")
    what.add_argument(
        "--extend", action="append", nargs="+", metavar="SIDE=PIXELS", help="continue at left, right, top or bottom"
    )
    condition = p.add_mutually_exclusive_group()
    condition.add_argument("--prompt", metavar="T", help="a text")
    condition.add_argument("--label", metavar="K", help="a class by number or name")
    add_settings(p)
    p.add_argument("--out", metavar="OUT.png", required=True)
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    extend = [_side(text) for texts in args.extend or () for text in texts]
    for path in (args.run, args.image, args.mask):
        if path is not None:
            existing(path)
    if not args.out.lower().endswith(".png"):
        raise UserError(f"--out {args.out}: the picture is written as FILE.png")

    from mmgen_tokenizers.cache import use_compilation_cache

    from mmgen import editing, samples

    use_compilation_cache()
    given = {name: getattr(args, name) for name in ("mask", "prompt", "label", "out", "seed", "dtype")}
    given["tensor"] = tensor_of(args)
    args.guidance_schedule = samples.schedule(args.guidance_schedule)
    settings = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    editing.edit(args.run, args.image, extend=extend, **given, **settings)


def _side(text: str) -> tuple[str, int]:
    side, _, pixels = text.partition("=")
    if side not in SIDES or not pixels.isdigit():
        raise UserError(f"--extend {text}: write SIDE=PIXELS, with a side of {', '.join(SIDES)}, for example left=64")
    return side, int(pixels)
