"""Fetch published weights through huggingface_hub (extra `hub`): of one commit, resumable, checked by their hash.

NAME is a tokenizer that `mmgen-tokenizers list` shows. Without --revision the commit is the newest one at the first time and
the same ever after: pulled.json beside the file notes it, and the hash of what came. The page of a file shows both.

example:
  mmgen pull VQ-16 --out weights
  mmgen pull FoundationVision/LlamaGen c2i_B_256.pt --revision COMMIT --sha256 HASH --out weights
"""

from collections.abc import Sequence

from mmgen_tokenizers.cli import pull, pull_arguments

from mmgen.cli.parsing import Parser


def main(arguments: Sequence[str]) -> None:
    p = Parser("mmgen pull", __doc__)
    pull_arguments(p)
    pull(p.parse_args(arguments))
