"""Write a run's weights to a folder for use elsewhere: in our own form, or under the names of the published code.

RUN is a run folder, or any folder that `mmgen sample` or `mmgen-tokenizers` reads. The folder written is complete: config.json,
model.safetensors and, for a generator, its text model and tokenizer.

With --format only weights are written, as model.safetensors; a generator's tokenizer is exported by itself, where its network
is one of the published code. LlamaGen's scripts read files of torch: there
torch.save({"model": safetensors.torch.load_file("model.safetensors")}, "model.pt") makes one.

example:
  mmgen export runs/my_generator --out my_model --checkpoint best
  mmgen export models/gpt_b --out for_llamagen/gpt --format llamagen
  mmgen export models/gpt_b/tokenizer --out for_llamagen/vq --format llamagen
"""

from collections.abc import Sequence

from mmgen.cli.parsing import Parser, existing


def parser() -> Parser:
    p = Parser("mmgen export", __doc__)
    p.add_argument("run", metavar="RUN")
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    p.add_argument(
        "--checkpoint",
        metavar="best|last|STEP",
        help="of a run: the one with the lowest validation loss, the last one (default), or that of a step",
    )
    p.add_argument("--overwrite", action="store_true", help="replace the model that DIR holds")
    p.add_argument("--format", metavar="NAME", help="published names: llamagen, maskbit, nar, rar, var (default: our own)")
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    existing(args.run)

    from mmgen_tokenizers.files import check_free

    from mmgen.folders import export

    if args.format is None:
        check_free(args.out, args.overwrite)
    print(export(args.run, args.out, args.format, args.checkpoint))
