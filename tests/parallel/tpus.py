"""Compiles programs for TPUs that are not there; prints what libtpu made of them as one line of JSON.

`tpus.py TOPOLOGY EXPERIMENT.py [--any.field VALUE ...]`
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mmgen import config
from mmgen.config import Experiment
from mmgen.model.attention import attention, rule_of
from mmgen.model.config import GeneratorConfig
from mmgen.model.transformer import build_plan
from mmgen.parallel import chips, hlo, preflight
from mmgen.parallel.mesh import make_mesh, under
from mmgen.parallel.overhear import copied, overheard
from mmgen.parallel.rules import BATCH
from mmgen.training import tasks


def sums(experiment: Experiment, topology: chips.Topology, depth: int) -> int:
    """All-reduces of a forward of so many layers."""
    model = replace(experiment.task.model, depth=depth)
    experiment = replace(experiment, task=replace(experiment.task, model=model), compute_dtype="bfloat16")
    step, forward = preflight.prepared(experiment, topology), jax.jit(tasks.make(experiment, None).validate)
    _, extra, frozen, batch = step.given["other"]
    inputs = step.given["parameters"], extra, frozen, batch
    program = under(step.mesh, lambda: forward.lower(*inputs).compile())()
    return hlo.collectives(program.as_text())["all-reduce"].count


def kernel(topology: chips.Topology, dims: int) -> bool:
    """Whether splash attention and its way back are in a program for heads so wide, which takes no other way."""
    mesh, rule = make_mesh((1, 4, 1, 1), topology.devices), rule_of(build_plan(GeneratorConfig()), None)
    x = jax.ShapeDtypeStruct((4, rule.plan.slots, 2, dims), jnp.bfloat16, sharding=NamedSharding(mesh, BATCH))

    def value(q, k, v):
        return attention(q, k, v, rule, "splash").astype(jnp.float32).sum()

    with warnings.catch_warnings(action="error"):
        program = under(mesh, lambda: jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(x, x, x).compile())()
    return program.as_text().count("tpu_custom_call") >= 3


if __name__ == "__main__":
    name, path, *fields = sys.argv[1:]
    topology, experiment = chips.topology(name), config.overrides(config.load_experiment(Path(path)), fields)
    with overheard() as lines:
        found = {"sums": [sums(experiment, topology, depth) for depth in (2, 5)]}
        found["kernels"] = {dims: kernel(topology, dims) for dims in (64, 100, 128)}
    print(json.dumps(found | {"copied": copied(lines)}))
