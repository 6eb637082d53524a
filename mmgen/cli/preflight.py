"""Compile the training step of an experiment for devices that are not there, and say what it needs of each of them; or, with
--sample N, what draws the tokens of N pictures at once with its model, as `mmgen sample` does.

Nothing is run and no data need be there; only where pictures are encoded in the step, the tokenizer must be. TPUs are compiled
for by libtpu, on any Linux machine (pip install 'mmgen[tpu]'), with little optimization where there is memory to spare; for
GPUs, fake CPU devices give an estimate. Where it does not fit, changes are tried until one does. Any field can be changed by
--any.field VALUE, as in `mmgen train`.

Exit code: 0 it fits (or nothing is known of the device), 1 it does not.

example:
  mmgen preflight experiments/imagenet256/llamagen_b.py --topology v5e:4x4
  mmgen preflight experiments/imagenet256/llamagen_b.py --topology h200:8 --mesh.tensor 2 --json needs.json
  mmgen preflight experiments/imagenet256/llamagen_b.py --topology v5e:2x2 --sample 64
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mmgen_tokenizers.errors import UserError

from mmgen.cli.parsing import Parser, existing

if TYPE_CHECKING:
    from mmgen.config import Experiment
    from mmgen.parallel.chips import Topology


def parser() -> Parser:
    p = Parser("mmgen preflight", __doc__, takes_fields=True)
    p.add_argument("experiment", metavar="EXPERIMENT.py")
    p.add_argument("--topology", metavar="CHIP:GRID", required=True, help="v5e:8x8, v5p:8x8x8, v6e:16x16, h200:8, cpu:4 ...")
    p.add_argument("--sample", type=int, metavar="N", help="not training but N pictures drawn at once")
    p.add_argument("--optimize", action="store_true", help="for TPUs: compile as a run does, which takes several times as long")
    p.add_argument("--json", metavar="FILE", help="write what was found there too")
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    path = existing(args.experiment)

    from mmgen_tokenizers.files import write_json

    from mmgen import config
    from mmgen.parallel import chips, preflight
    from mmgen.parallel.forecast import describe, forecast

    experiment = config.overrides(config.load_experiment(path), args.fields)
    topology = chips.topology(args.topology)
    prepare, changes = _wanted(experiment, topology, args.sample)
    found = forecast(topology, preflight.measured(prepare([]), topology, args.optimize))
    print(describe(found))
    if not found["fits"]:
        found["tried"] = []
        print("it does NOT fit; trying changes:", flush=True)
        for flags, needs in preflight.nearest(prepare, changes, topology):
            found["tried"].append({"flags": flags, "bytes_together": needs.total, "fits": preflight.fits(needs, topology)})
            print(f"  {' '.join(flags)}: {needs.total / chips.GIB:.2f} GiB", flush=True)
        fitting = next((tried["flags"] for tried in found["tried"] if tried["fits"]), None)
        print(f"this fits: {' '.join(fitting)}" if fitting else "none of those tried fits: take more devices")
    if args.json:
        write_json(args.json, found)
    if not found["fits"]:
        sys.exit(1)


def _wanted(experiment: "Experiment", topology: "Topology", pictures: int | None) -> tuple[Callable, Iterable[list[str]]]:
    """What prepares the step with a change of the command line, and the changes to try."""
    from mmgen.config import overrides
    from mmgen.parallel import preflight, sampling
    from mmgen.training import tasks

    with contextlib.suppress(UserError):  # its tokenizer need not be there: then the model is what the experiment says
        experiment = tasks.settled(experiment, None)

    def train(flags: list[str]) -> preflight.Step:
        return preflight.prepared(overrides(experiment, flags), topology)

    def sample(flags: list[str]) -> preflight.Step:
        if flags[:1] == ["--sample"]:
            return sampling.prepared(experiment, topology, int(flags[1]))
        return sampling.prepared(overrides(experiment, flags), topology, pictures)

    if pictures is None:
        return train, preflight.changes(experiment, len(topology.devices))
    return sample, sampling.changes(experiment, pictures)
