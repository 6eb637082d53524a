"""The command `mmgen`: finds the verb's file and runs it. JAX is imported by the verbs that compute, not here."""

import importlib
import sys
from collections.abc import Sequence

from mmgen_tokenizers.arguments import exit_code
from mmgen_tokenizers.errors import UserError, nearest

VERBS = {
    "quickstart": "train a tokenizer and a generator on embedded scenes, and draw pictures from prompts",
    "train": "train what an experiment file describes, or continue its run",
    "preflight": "compile an experiment's training step for devices that are not there: memory, operations, collectives",
    "tokenize": "turn a set of pictures into token shards",
    "sample": "draw pictures from a trained or converted model",
    "evaluate": "score pictures, or a model's, against a reference: FID and its relatives",
    "report": "write a page of one run, or of several side by side: figures, curves, pictures",
    "edit": "draw a part of a picture anew, or continue it beyond its edges",
    "export": "write a run's weights for use elsewhere",
    "pull": "fetch a file of published weights",
    "convert": "read a published checkpoint",
    "info": "describe a run, an exported model, token shards or an experiment file",
}


def usage() -> str:
    verbs = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
    return (
        f"usage: mmgen VERB ...\n\nAutoregressive image models: train, load, sample.\n\n{verbs}\n\n"
        "mmgen VERB --help describes a verb, with an example. mmgen-tokenizers encodes, decodes and reconstructs pictures.\n\n"
        "example:\n  mmgen quickstart\n"
        "  mmgen sample runs/quickstart/generator --prompt 'a small red circle above a large blue square' -n 4"
    )


def run(arguments: Sequence[str]) -> None:
    """Runs one command line; every mistake of the user's is a UserError."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    verb, *rest = arguments
    if verb == "--version":
        from mmgen import __version__

        print(f"mmgen {__version__}")
        return
    if verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}: mmgen {', '.join(VERBS)}.{nearest(verb, VERBS)}")
    importlib.import_module(f"mmgen.cli.{verb}").main(rest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
