"""Fetch a file of published weights through huggingface_hub (extra `hub`): of one commit, resumable, checked by its hash.

The page of the file shows the commit and the SHA-256. Without --sha256 the hash of what came is printed, and noted in
pulled.json beside the file.

example:
  mmgen pull FoundationVision/LlamaGen c2i_B_256.pt --revision COMMIT --sha256 HASH --out weights
"""

from collections.abc import Sequence

from mmgen_tokenizers.cli import pull, pull_arguments

from mmgen.cli.parsing import Parser


def main(arguments: Sequence[str]) -> None:
    p = Parser("mmgen pull", __doc__)
    pull_arguments(p)
    pull(p.parse_args(arguments))
