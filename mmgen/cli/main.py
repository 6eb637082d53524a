"""The command `mmgen`: finds the verb's file and runs it. JAX is imported by the verbs that compute, not here."""

import importlib
import os
import sys
from collections.abc import Sequence

from mmgen_tokenizers.errors import UserError, is_full_disk, nearest, plain_warnings

VERBS = {
    "quickstart": "train a tokenizer and a generator on embedded scenes, and draw pictures from prompts",
    "train": "train what an experiment file describes, or continue its run",
    "tokenize": "turn a set of pictures into token shards",
    "sample": "draw pictures from a trained or converted model",
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
        "mmgen VERB --help describes a verb, with an example.\n\n"
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
    """Returns the exit code: 0, 2 for what the user can mend, 130 for ctrl-C."""
    plain_warnings()
    try:
        run(sys.argv[1:] if arguments is None else arguments)
        return 0
    except UserError as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        message = f"{error.strerror}: {error.filename}"
    except Exception as error:
        if not is_full_disk(error):
            raise
        path = getattr(error, "filename", None)
        folder = os.path.dirname(os.path.abspath(path)) if path else os.getcwd()
        message = f"the disk is full: free space for {folder} and start again"
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
