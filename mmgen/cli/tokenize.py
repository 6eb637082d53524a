"""Turn a set of pictures into token shards, which generators train on without encoding again.

SPEC of --data is one of
  shapes[:test]              the embedded scenes
  nlvr:FOLDER[:test]         boxes of NLVR's pictures, told in its metadata.jsonl, with captions of what they hold
  tfds:NAME[:SPLIT]          a TFDS data set that was prepared as array_record (see --data-dir)
  FOLDER                     pictures: metadata.jsonl with file_name and text, one folder a class, or pictures alone

Captions and classes are stored with the tokens where there are any. Stopped and started again, it goes on. Several processes
share the work by --part, on one machine or many; the last one to finish makes one set of their parts.

example:
  mmgen tokenize runs/my_tokenizer --data my_pictures/train --out my_tokens --crops random:8
  srun sh -c 'mmgen tokenize models/vq16 --data imagenet/train --out tokens --part $SLURM_PROCID/$SLURM_NTASKS'
  mmgen tokenize models/vq16 --llamagen-codes imagenet256_codes --out my_tokens
"""

from collections.abc import Sequence

from mmgen_tokenizers.errors import UserError

from mmgen.cli.parsing import Parser, existing

OF_PICTURES = ("data_dir", "crops", "flip", "count", "seed", "part")


def parser() -> Parser:
    p = Parser("mmgen tokenize", __doc__)
    p.add_argument("tokenizer", metavar="TOKENIZER", help="folder: a tokenizer's run, or an exported or converted one")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="SPEC", help="the pictures")
    source.add_argument(
        "--llamagen-codes",
        metavar="DIR",
        nargs="+",
        help="instead of pictures: the .npy folders that LlamaGen's extract_codes_c2i.py wrote with this tokenizer",
    )
    p.add_argument("--data-dir", metavar="DIR", help="where TFDS sets lie (default: TFDS's own)")
    p.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    p.add_argument(
        "--crops",
        default="center",
        metavar="center|random:K[:MARGIN]|ten[:MARGINS]",
        help="of each picture the middle (default), K random crops (random:10:1.125: as VAR's), or LlamaGen's ten "
        "(ten:1.1,1.05: twice ten)",
    )
    p.add_argument("--flip", action="store_true", help="mirror half of the random crops")
    p.add_argument("--count", type=int, metavar="N", help="only the first N pictures")
    p.add_argument("--part", metavar="I/N", help="of N processes, on any machines that see DIR, this is number I, from 0")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of the random crops (default: 0)")
    return p


def part_of(text: str | None) -> tuple[int, int] | None:
    """ "0/8" -> (0, 8)."""
    if text is None:
        return None
    index, _, parts = text.partition("/")
    if not (index.isdigit() and parts.isdigit() and int(index) < int(parts)):
        raise UserError(f"--part {text}: name the number of this process and how many there are, 0/8 to 7/8")
    return int(index), int(parts)


def main(arguments: Sequence[str]) -> None:
    p = parser()
    args = p.parse_args(arguments)
    existing(args.tokenizer)

    if args.llamagen_codes:
        given = [flag for flag in OF_PICTURES if vars(args)[flag] != p.get_default(flag)]
        if given:
            flags = " and ".join("--" + flag.replace("_", "-") for flag in given)
            raise UserError(f"{flags} says how pictures are read, and --llamagen-codes are read as they are: leave it out")
        import mmgen_tokenizers as mt
        from mmgen_tokenizers.shards import import_llamagen_codes

        tok = mt.load(args.tokenizer)
        count = import_llamagen_codes(args.llamagen_codes, args.out, tok.fingerprint, tok.layout.codebook_size)
        print(f"{args.out}: codes of {count} pictures")
        return

    from mmgen_tokenizers.cache import use_compilation_cache

    from mmgen.data.tokenize import tokenize

    use_compilation_cache()
    tokenize(args.tokenizer, args.data, args.out, crops=args.crops, flip=args.flip, count=args.count, seed=args.seed,
             data_dir=args.data_dir, part=part_of(args.part))  # fmt: skip
