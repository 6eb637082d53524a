"""Train what an experiment file describes. Started again, it continues from its last complete checkpoint.

EXPERIMENT.py has a function experiment() that returns an mmgen.Experiment. Any of its fields can be changed by
--any.field VALUE; `mmgen info EXPERIMENT.py` lists them all. Ctrl-C saves and stops.

--init-from starts from a trained, converted or exported model of the same sizes: a generator (its condition may be another:
classes are known by their names, or by number where either side has none) or, for a tokenizer, one of its like. With --frozen
blocks,ends.input those parameters stay as they are and take no memory in the optimizer.

All devices are used; --mesh.replica, --mesh.fsdp, --mesh.tensor and --mesh.sequence say how. On SLURM, Open MPI and TPU pods of
GKE the processes of a job find each other, on TPU VMs with MMGEN_DISTRIBUTED=1; elsewhere each is told by --coordinator,
--processes and --process.

example:
  mmgen train experiments/shapes/generator.py --out runs/mine --steps 2000 --optimizer.schedule.peak 1e-3
  mmgen train my_generator.py --init-from models/gpt_b --frozen blocks
  mmgen train experiments/shapes/tokenizer.py --data.source.kind ImageFolder --data.source.folder my_pictures

The run folder holds experiment.json, metrics.jsonl, tensorboard/, checkpoints/, previews/ (pictures) and export/, which
`mmgen sample`, `mmgen.load` and `mmgen_tokenizers.load` read. export/ has the weights of the last checkpoint; it is written
while training goes on, so after a kill it may have those of the checkpoint before (`mmgen info RUN` says of which step).
"""

from collections.abc import Sequence
from pathlib import Path

from mmgen_tokenizers.errors import UserError

from mmgen.cli.parsing import Parser, existing


def parser() -> Parser:
    p = Parser("mmgen train", __doc__, takes_fields=True)
    p.add_argument("experiment", metavar="EXPERIMENT.py")
    p.add_argument("--out", metavar="RUN", help="run folder (default: runs/<folder>_<name of the file>)")
    p.add_argument("--init-from", metavar="DIR", help="begin with the weights of that model; short for --task.start_from")
    p.add_argument("--frozen", metavar="PARTS", help="parts of a generator that are not trained; short for --task.frozen")
    p.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where several processes train together")
    p.add_argument("--processes", type=int, metavar="N", help="how many they are")
    p.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    p.add_argument("--profile", metavar="FIRST:LAST", help="write a trace of these steps to RUN/profile, for xprof")
    return p


def steps_of(text: str | None) -> tuple[int, int] | None:
    """ "10:13" -> (10, 13)."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile {text}: name the first and the last step, such as 10:13")
    return int(first), int(last)


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    path, profile = existing(args.experiment), steps_of(args.profile)

    from mmgen import config

    short = {"--task.start_from": args.init_from, "--task.frozen": args.frozen}
    fields = [word for name, value in short.items() if value is not None for word in (name, value)]
    experiment = config.overrides(config.load_experiment(path), [*fields, *args.fields])
    out = Path(args.out) if args.out else Path("runs") / f"{path.resolve().parent.name}_{path.stem}"

    from mmgen.parallel import distributed
    from mmgen.parallel.watch import Watch
    from mmgen.training.loop import train

    distributed.initialize(args.coordinator, args.processes, args.process)
    Watch.ends_program = True
    train(experiment, out, profile)
