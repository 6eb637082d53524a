"""Read a published checkpoint and write it in the form that `mmgen sample`, `mmgen.load` and `mmgen_tokenizers.load` read.

CHECKPOINT is a safetensors file (or folder), or a .pt, .pth, .ckpt or .bin of torch: torch is not needed, and nothing in the
file is run. Families of tokenizers are converted as well as families of generators; a name that is not known lists all.
--config takes the published code's own keys, says which of them it ignores, and refuses those that the family does not know.

example:
  mmgen convert llamagen-vq vq_ds16_c2i.pt --out models/vq16
  mmgen convert llamagen-gpt c2i_B_256.pt --out models/gpt_b --tokenizer models/vq16
  mmgen sample models/gpt_b --label 207 -n 4
  mmgen convert var var_d16.pth --out models/var_d16 --tokenizer models/var_vqvae
  mmgen convert rar rar_b.bin --out models/rar_b --tokenizer models/maskgit_vqgan
"""

from collections.abc import Sequence

from mmgen_tokenizers.arguments import json_object

from mmgen.cli.parsing import Parser, existing


def parser() -> Parser:
    p = Parser("mmgen convert", __doc__)
    p.add_argument("family", metavar="FAMILY", help="llamagen-gpt, maskbit, nar, rar, var; or one of `mmgen-tokenizers list`")
    p.add_argument("checkpoint", metavar="CHECKPOINT")
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    p.add_argument("--config", metavar="FILE.json", help="the model's own settings, where its weights do not show them")
    p.add_argument("--tokenizer", metavar="DIR", help="of a generator: its converted tokenizer, copied into DIR")
    p.add_argument("--overwrite", action="store_true", help="replace the model that DIR holds")
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    existing(args.checkpoint)
    config = json_object(args.config)

    from mmgen_tokenizers.files import check_free

    from mmgen import pretrained
    from mmgen.description import describe

    check_free(args.out, args.overwrite)
    pretrained.convert(args.family, args.checkpoint, args.out, config, args.tokenizer)
    print(describe(args.out))
