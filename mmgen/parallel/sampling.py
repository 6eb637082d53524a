"""What `mmgen sample` runs with the model of an experiment, for devices that are not there."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mmgen_tokenizers.errors import UserError

from mmgen.config import Experiment, GeneratorTask, MeshSizes
from mmgen.decoding.autoregressive import Settings, decode_axes, decode_params
from mmgen.decoding.jobs import REPLICA, Programs, decoder_of, fitting
from mmgen.decoding.target import resolve
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, GeneratorConfig, Masked, TextCondition
from mmgen.model.kv_cache import bytes_per_row
from mmgen.model.layers import compute_dtype
from mmgen.parallel.chips import Topology
from mmgen.parallel.mesh import make_mesh, under
from mmgen.parallel.mesh import resolve as sizes_of
from mmgen.parallel.preflight import Step, computes_in
from mmgen.parallel.rules import bytes_each, named, specs


def prepared(experiment: Experiment, topology: Topology, pictures: int) -> Step:
    """Plain decoding of so many pictures at once, by the experiment's sampling settings, traced. Of its mesh only `tensor`
    counts: other devices draw other pictures. Raises UserError where the numbers do not fit."""
    if not isinstance(experiment.task, GeneratorTask):
        raise UserError("--sample is for generators: this experiment trains a tokenizer")
    c, dtype = experiment.task.model, compute_dtype(computes_in(experiment, topology))
    shape = replicas, _, tensor, _ = sizes_of(MeshSizes(-1, 1, experiment.mesh.tensor, 1), len(topology.devices))
    _check_share(pictures, replicas)
    mesh = make_mesh(shape, topology.devices)
    machine = decoder_of(c, dtype)
    forwards = c.plan.steps if isinstance(c.plan, Masked) else machine.plan.times
    which, settings = resolve(experiment.task.sampling, forwards)
    given = _given(c, dtype, mesh, (1 + which.guided, pictures), _settings(c, settings))
    traced = under(mesh, Programs(dtype, mesh).decoding(machine, which, given).trace)(*given)
    rows, (((params, batch),), *_) = (1 + which.guided) * pictures // replicas, given
    cache = 0 if isinstance(c.plan, Masked) else rows * bytes_per_row(c, machine.room, dtype.itemsize) // tensor

    def moved(temporaries: int) -> int:
        """Each forward reads the weights, and the cache as far as it reaches at that time."""
        share = sum((s.stop - s.start) * s.room / machine.room for s in machine.segments) if cache else 0
        return int(forwards * bytes_each(params) + share * cache)

    most = topology.chip and fitting(machine, mesh, topology.chip.bytes)
    about = {"rows": pictures, "rows_at_once": most, "forwards": forwards, "guided": which.guided}
    unit = "tokens", c.layout.sites * c.layout.groups
    return Step(about, mesh, {"parameters": params, "condition": batch}, traced, ("cache", cache), moved, None, unit)


def _check_share(pictures: int, replicas: int) -> None:
    """Each replica draws a power of two pictures of its own."""
    if pictures < 1 or pictures % replicas or (pictures // replicas).bit_count() != 1:
        raise UserError(
            f"--sample {pictures}: each of {replicas} replicas draws a power of two pictures, so give {replicas}, "
            f"{2 * replicas}, {4 * replicas} ..."
        )


def _given(c: GeneratorConfig, dtype: jnp.dtype, mesh, rows: tuple[int, int], settings: Settings) -> tuple:
    """The arguments of the program (jobs.Job.given), as shapes."""

    def shaped(spec: P, shape: tuple[int, ...], kind) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))

    whole = jax.eval_shape(lambda: decode_params(c, transformer.init(c, jax.random.key(0)), dtype))
    places = named(specs(decode_axes(c), whole, mesh), mesh)
    params = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), whole, places)
    batch = {name: shaped(P(None, "replica"), (*rows, *shape), kind) for name, (shape, kind) in _condition(c).items()}
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return [(params, batch)], shaped(REPLICA, rows[1:], np.uint32), key, settings, ()


def _condition(c: GeneratorConfig) -> dict[str, tuple]:
    """Shape of a row, and type, of what Reader.read gives."""
    condition = c.condition
    if isinstance(condition, ClassCondition):
        return {"label": ((), np.int32)}
    if isinstance(condition, TextCondition):
        return {"prompt": ((condition.length,), np.int32), "prompt_valid": ((condition.length,), bool)}
    own = {"features": ((condition.length, condition.width), np.float32), "features_valid": ((condition.length,), bool)}
    return own | {"null": ((), bool)}


def _settings(c: GeneratorConfig, settings: dict) -> Settings:
    return Settings(**settings, choice_temperature=np.float32(0) if isinstance(c.plan, Masked) else None)


def changes(experiment: Experiment, pictures: int) -> Iterator[list[str]]:
    """What may make it fit, as options of the command line: fewer pictures, then devices that share one."""
    yield from (["--sample", str(pictures // n)] for n in (2, 8) if pictures % n == 0)
    for size in (2, 4, 8):
        yield ["--mesh.tensor", str(experiment.mesh.tensor * size)]
