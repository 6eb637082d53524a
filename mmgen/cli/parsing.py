"""What the verbs of `mmgen` read their command line with, and `--any.field VALUE` pairs."""

import argparse
from collections.abc import Sequence

from mmgen_tokenizers import arguments as shared
from mmgen_tokenizers.arguments import existing

__all__ = ["Parser", "existing"]


class Parser(shared.Parser):
    """With `takes_fields` options that the verb does not declare are collected, with their values, in `fields`."""

    def __init__(self, prog: str, text: str, takes_fields: bool = False):
        super().__init__(prog, text)
        self.takes_fields = takes_fields

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        arguments, fields = self._split(arguments) if self.takes_fields else (arguments, [])
        parsed = super().parse_args(arguments)
        parsed.fields = fields
        return parsed

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        own, fields, rest = [], [], list(arguments)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word.partition("=")[0] in self._option_string_actions:
                own.append(word)
                continue
            fields.append(word)
            if "=" not in word and rest and not rest[0].startswith("--"):
                fields.append(rest.pop(0))
        return own, fields
