r"""Score pictures as papers do: FID, sFID, Inception score, precision and recall of ADM's evaluator, and KID.

Pictures are those of --samples, or are drawn from RUN by a protocol (llamagen_c2i_256, var_256, rar_256, adm_256), in pieces: a
command that was stopped goes on when it is started again. --reference is a set of pictures or a file of statistics, such as
ADM's VIRTUAL_imagenet256_labeled.npz; those of a folder are cut to squares as ADM cuts them. --inception names the weights of
the graph of 2015 under torchvision's names (pt_inception-2015-12-05-6726825d.pth). The figures, their intervals and all
that they depend on go to evaluation.json; `mmgen report` makes a page of it.

With --suite, pictures are drawn for prompts: `shapes` are captions of the embedded scenes, `nlvr` those of boxes of NLVR, both
read back by a program and reported as GenEval does; files are those of PartiPrompts, GenEval, T2I-CompBench, DPG-Bench or
TIFA, drawn onto a sheet for each category and scored by --scorer, a Python function of (pictures uint8 [B, H, W, 3], prompts)
that gives B numbers.

With --classifier, a small network learns to tell the classes of labelled pictures: those that RUN was trained on, or those of
SPEC (as below), and of a second one to test it. It says how many of those drawn (--num, or 500) it recognises as the class
asked for, and how far they are from the real ones in its features (FCD, never FID): for data that no published network fits.

With --likelihood, the model says how probable pictures are that it has not seen: bits a dimension where its tokens are the
pixels (mmgen-tokenizers pixels; of grey pictures bits a pixel), else bits a picture. SPEC is as in `mmgen tokenize`:
shapes:test, tfds:NAME:SPLIT, a folder of pictures or of token shards.

With --checkpoint, its weights are exported to RUN/evaluation/NAME/CHECKPOINT/model first and stay there, a whole model for
each that is evaluated, until you delete it. "best" and "last" are exported anew each time: where they have become others,
their pictures need another --out.

example:
  mmgen evaluate models/gpt_b --protocol llamagen_c2i_256 --inception pt_inception.pth \
      --reference VIRTUAL_imagenet256_labeled.npz
  mmgen evaluate --samples samples.npz --reference imagenet/val --inception pt_inception.pth --save-statistics val.npz
  mmgen evaluate runs/quickstart/generator --suite shapes
  mmgen evaluate models/t2i --suite PartiPrompts.tsv --scorer my_scorer:score
  mmgen evaluate runs/fashion_mnist_generator --classifier tfds:fashion_mnist:train tfds:fashion_mnist:test
  mmgen evaluate runs/pixels --likelihood tfds:fashion_mnist:test
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmgen_tokenizers.arguments import positive
from mmgen_tokenizers.errors import UserError

from mmgen.cli.parsing import Parser, existing
from mmgen.cli.sample import SETTINGS, add_settings, tensor_of

DRAWING = ("protocol", "num", "dtype", "mesh.tensor", "checkpoint", "seed", *SETTINGS)
SCENES = ("shapes", "nlvr")  # faithfulness.SCENES, which takes JAX to import
SCORING = ("reference", "inception", "protocol", "size", "crop", "save_statistics")


def parser() -> Parser:
    p = Parser("mmgen evaluate", __doc__)
    p.add_argument("run", nargs="?", metavar="RUN", help="a generator to draw from, unless --samples are given")
    p.add_argument("--samples", metavar="FILE.npz|FOLDER", help="pictures to score; .npz: uint8 arr_0 [N, H, W, 3]")
    p.add_argument("--reference", metavar="FILE.npz|FOLDER", help="pictures or statistics to compare with")
    p.add_argument("--inception", metavar="FILE", help="weights of InceptionV3")
    p.add_argument("--protocol", metavar="NAME", help="whose choices to follow")
    told = "pictures: to draw (the protocol's: 50000, for a classifier 500), a prompt (1), to read (all)"
    p.add_argument("-n", "--num", type=positive, metavar="N", help=told)
    p.add_argument("--suite", nargs="+", metavar="shapes|nlvr|FILE", help="prompts to draw, instead of a protocol's classes")
    p.add_argument("--scorer", metavar="MODULE:FUNCTION", help="what scores the pictures of --suite")
    p.add_argument("--classifier", nargs="*", metavar="SPEC", help="judge by one that learns these pictures (RUN's)")
    p.add_argument("--likelihood", metavar="SPEC", help="pictures or token shards of which to say how probable they are")
    p.add_argument("--data-dir", metavar="DIR", help="where TFDS sets of SPEC lie (default: TFDS's own)")
    p.add_argument("--size", type=positive, metavar="PIXELS", help="squares to which pictures of a folder of --samples are cut")
    p.add_argument("--crop", choices=("adm", "lanczos"), help="how pictures of folders are cut (adm)")
    p.add_argument("--save-statistics", metavar="FILE.npz", help="write those of the reference, to name them next time")
    p.add_argument("--checkpoint", metavar="best|last|STEP", help="of a run, instead of its newest weights")
    p.add_argument("--out", metavar="DIR|FILE.json", help="RUN/evaluation/PROTOCOL, or evaluation.json for --samples")
    p.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where several processes share the work")
    p.add_argument("--processes", type=int, metavar="N", help="how many they are")
    p.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    add_settings(p)
    p.set_defaults(seed=None)  # so that one which is given is seen
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    if args.classifier and args.run is None:
        raise UserError("RUN comes first: mmgen evaluate RUN --classifier [TRAIN [TEST]]")
    if (args.run is None) == (args.samples is None):
        raise UserError("give either RUN, to draw from it, or --samples (mmgen evaluate --help shows how)")
    files = [] if args.suite in (None, *([scenes] for scenes in SCENES)) else args.suite
    for path in filter(None, (args.run, args.samples, args.reference, args.inception, *files)):
        existing(path)
    _mode(args)(args)


def _mode(args: argparse.Namespace) -> Callable[[argparse.Namespace], None]:
    """What is asked for. Raises UserError for options that do not belong to it."""
    if args.likelihood:
        _refuse(args, ("samples", "suite", "scorer", "classifier", "seed", *SCORING, *SETTINGS), "--likelihood")
        return _likelihood
    if args.classifier is not None:
        _refuse(args, ("samples", "suite", "scorer", *SCORING), "--classifier")
        return _classifier
    _refuse(args, ("data_dir",), "anything but --likelihood and --classifier")
    if args.suite:
        _refuse(args, ("samples", *SCORING), "--suite")
        return _suite
    if missing := [f"--{name}" for name in ("reference", "inception") if getattr(args, name) is None]:
        told = "what to compare with, and by which weights (--classifier, --suite and --likelihood need neither)"
        raise UserError(f"{' and '.join(missing)} must be given: {told}")
    if args.samples:
        _refuse(args, ("scorer", *DRAWING), "--samples, which are drawn already")
        return _score
    _refuse(args, ("scorer", "size", "crop"), "a protocol, which says it")
    return _draw


def _refuse(args: argparse.Namespace, names: Sequence[str], mode: str) -> None:
    surplus = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if surplus:
        raise UserError(f"{', '.join(surplus)} cannot be given with {mode}")


def _score(args: argparse.Namespace) -> None:
    from mmgen_tokenizers.evaluation.results import score
    from mmgen_tokenizers.files import write_json

    from mmgen.parallel.distributed import first_process

    _join(args)
    size, out = (args.size, args.size) if args.size else None, args.out or "evaluation.json"
    found = score(args.samples, args.reference, args.inception, size, args.crop or "adm", args.save_statistics)
    if first_process():
        write_json(out, found)
        _tell(found, f"{found['samples']['pictures']} pictures of {args.samples}", out)


def _draw(args: argparse.Namespace) -> None:
    from mmgen.evaluation.generated import evaluate

    run, out = _begin(args, args.protocol or "own")
    how = _how(args) | {"statistics": args.save_statistics}
    found = evaluate(run, args.reference, args.inception, out, args.protocol, args.num, **how)
    if found is not None:
        _tell(found, f"{found['samples']['pictures']} pictures of {args.run}", out / "evaluation.json")


def _suite(args: argparse.Namespace) -> None:
    from mmgen.evaluation import faithfulness, suites

    run, out = _begin(args, Path(args.suite[0]).stem)
    if args.suite[0] in SCENES:
        _refuse(args, ("scorer",), f"--suite {args.suite[0]}, which a program reads")
        found = faithfulness.evaluate(run, out, args.num, scenes=args.suite[0], **_how(args))
    else:
        found = suites.evaluate(run, args.suite, out, args.num, args.scorer, **_how(args))
    if found is not None:
        _tell(found, "", f"{out / 'evaluation.json'} and {out / 'report.html'}")


def _classifier(args: argparse.Namespace) -> None:
    from mmgen.evaluation.recognition import evaluate

    run, out = _begin(args, "classifier")
    made = evaluate(run, args.run, out, args.num, args.classifier, args.data_dir, **_how(args))
    if made is not None:
        result, found = made
        _tell(result, f"{len(found.pictures)} pictures of {args.run}", f"{out / 'evaluation.json'} and {out / 'report.html'}")


def _likelihood(args: argparse.Namespace) -> None:
    from mmgen.evaluation.likelihood import evaluate

    run, out = _begin(args, "likelihood")
    found = evaluate(run, args.likelihood, out, args.num, args.data_dir, args.dtype, tensor_of(args))
    if found is not None:
        _tell(found, f"{found['pictures']} pictures of {args.likelihood}", out / "evaluation.json")


def _tell(found: dict[str, Any], what: str, written: str | Path) -> None:
    from mmgen_tokenizers.evaluation.results import explain

    print("\n".join(filter(None, [what, explain(found), f"wrote {written}"])))


def _join(args: argparse.Namespace) -> None:
    from mmgen_tokenizers.cache import use_compilation_cache

    from mmgen.parallel import distributed

    distributed.initialize(args.coordinator, args.processes, args.process)
    use_compilation_cache()


def _begin(args: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """The folder of the model, and where its evaluation goes; all processes have met. A checkpoint is exported beside the
    latter first."""
    from mmgen.folders import export
    from mmgen.parallel.distributed import detected

    if args.checkpoint and (args.coordinator or detected()):
        raise UserError("--checkpoint is exported by one process: do so first (mmgen export), and evaluate what it wrote")
    _join(args)
    out = Path(args.out or Path(args.run) / "evaluation" / name / (args.checkpoint or ""))
    if args.checkpoint is None:
        return Path(args.run), out
    if not (out / "model" / "config.json").is_file() or not args.checkpoint.isdigit():  # the best one may be another by now
        export(args.run, out / "model", checkpoint=args.checkpoint)
    return out / "model", out


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """What says how tokens are drawn, where it is given."""
    from mmgen.samples import schedule

    given = {name: getattr(args, name) for name in SETTINGS} | {"guidance_schedule": schedule(args.guidance_schedule)}
    return {"seed": args.seed or 0, "dtype": args.dtype, "tensor": tensor_of(args)} | given
