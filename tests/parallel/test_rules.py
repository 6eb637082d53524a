"""Mesh sizes, the table of axes, and what is said where they do not fit. Nothing is compiled here."""

import socket
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from mmgen_tokenizers.errors import UserError

from mmgen.config import Data, Experiment, MeshSizes, TokenizerTask, overrides
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, GeneratorConfig
from mmgen.parallel import distributed, hlo
from mmgen.parallel.mesh import AXES, check_batch, mesh_of, resolve
from mmgen.parallel.rules import by_shape, constrain, spec, specs

EXPERIMENT = Experiment(TokenizerTask(), Data(), batch=24)


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        (MeshSizes(), 1, (1, 1, 1, 1)),
        (MeshSizes(), 8, (1, 8, 1, 1)),
        (MeshSizes(tensor=2), 8, (1, 4, 2, 1)),
        (MeshSizes(-1, 2, 1, 2), 8, (2, 2, 1, 2)),
        (MeshSizes(2, 2, 1, 1), 4, (2, 2, 1, 1)),
    ],
)
def test_sizes_multiply_to_the_devices(sizes, devices, expected):
    assert resolve(sizes, devices) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (MeshSizes(tensor=3), "does not use 8 devices: .* product is one of 1, 2, 4, 8"),
        (MeshSizes(2, 2, 1, 1), "does not use 8 devices"),
        (MeshSizes(-1, -1), "one of them may be -1"),
        (MeshSizes(tensor=0), "1 or more"),
    ],
)
def test_other_sizes_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        resolve(sizes, 8)


def test_fields_of_the_command_line():
    assert overrides(EXPERIMENT, ["--mesh.tensor", "4", "--mesh.fsdp=-1"]).mesh == MeshSizes(1, -1, 4, 1)
    with pytest.raises(UserError, match="unknown field --mesh.tensr: MeshSizes has replica, fsdp, tensor, sequence"):
        overrides(EXPERIMENT, ["--mesh.tensr", "4"])


def test_one_device_needs_no_mesh():
    assert mesh_of(EXPERIMENT) is None
    with pytest.raises(UserError, match="does not use 1 devices"):
        mesh_of(replace(EXPERIMENT, mesh=MeshSizes(2)))


def test_a_batch_that_cannot_be_split_is_refused():
    check_batch(EXPERIMENT, (2, 4, 16, 1))
    with pytest.raises(UserError, match=r"24 rows .* over 16 devices .* a multiple of 16 .* out of 1, 2, 3, 4, 6, 8"):
        check_batch(EXPERIMENT, (4, 4, 1, 1))
    with pytest.raises(UserError, match="12 rows .* choose a multiple of 16 as the batch"):
        check_batch(replace(EXPERIMENT, accumulate=2), (2, 4, 1, 1))


def mesh(replica=1, fsdp=1, tensor=1, sequence=1) -> AbstractMesh:
    return AbstractMesh((replica, fsdp, tensor, sequence), AXES)


def test_parameters_go_by_the_table():
    c = GeneratorConfig(block=BlockConfig(width=24, heads=3, mlp=16), depth=2)
    params = jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))
    found = specs(transformer.axes(c), params, mesh(fsdp=2, tensor=1))
    assert found["blocks"]["q"] == P(None, "fsdp", "tensor", None) and found["blocks"]["down"] == P(None, "tensor", "fsdp")
    assert found["ends"]["heads"]["head0"]["map"] == P("fsdp", "tensor")
    with pytest.raises(UserError, match=r"--mesh.tensor 2 does not divide the kv_heads axis of blocks.k,.* 3: .* are 1, 3$"):
        specs(transformer.axes(c), params, mesh(tensor=2))
    with pytest.raises(UserError, match="--mesh.fsdp 16 does not divide the embed axis"):
        specs(transformer.axes(c), params, mesh(fsdp=16))


def test_axes_that_meet_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="meet on one mesh axis"):
        spec(("vocab", "mlp"), activation=False)
    assert spec(("batch", "slots", "embed"), activation=True) == P(("replica", "fsdp"), "sequence", None)


def test_slots_that_cannot_be_split_are_refused():
    x = jnp.zeros((4, 6, 8))
    with jax.sharding.use_abstract_mesh(mesh(sequence=4)):
        with pytest.raises(UserError, match="slots axis, which has size 6: .* 1, 2, 3, 6"):
            constrain(x, "batch", "slots", "embed")
    assert constrain(x, "batch", "slots", "embed") is x


def test_arrays_without_names_are_split_along_their_widest_axis():
    shapes = {"kernel": (3, 3, 8, 16), "odd": (3, 5), "bias": (16,), "scalar": ()}
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert by_shape(arrays, mesh(fsdp=4)) == {
        "kernel": (None, None, None, "widest"), "odd": (None, None), "bias": (None,), "scalar": (),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "3"}, "SLURM"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, None),  # a shell within an allocation, not a task of it
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MMGEN_DISTRIBUTED": "1"}, "this machine"),
        ({"MMGEN_DISTRIBUTED": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU pod"),
    ],
)
def test_several_processes_are_detected(environment, expected):
    assert distributed.detected(environment) == expected


def test_incomplete_arguments_are_refused():
    with pytest.raises(UserError, match="--coordinator without --processes, --process: several processes need all three"):
        distributed.initialize("host:1234")
    with pytest.raises(UserError, match="processes count from 0 to 1"):
        distributed.initialize("host:1234", 2, 2)
    with pytest.raises(UserError, match="HOST:PORT"):
        distributed.initialize("host", 2, 1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(UserError("its däta"), UserError), (OSError("its däta"), distributed.Elsewhere), (RuntimeError(), distributed.Elsewhere)],
)
def test_an_error_of_one_process_reaches_the_others(monkeypatch, error, kind):
    """As what it is: after a mistake of the user's nothing starts again by itself."""
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: sent.append(mine) or np.stack([mine, 0 * mine]))
    with pytest.raises(type(error)), distributed.in_turn():
        raise error
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.stack([*sent, mine]))
    with pytest.raises(kind, match=f"^process 0 ended: {str(error) or 'RuntimeError'}$") as told, distributed.in_turn():
        pytest.fail("its turn never comes")
    assert type(told.value) is kind


def test_a_coordinator_that_does_not_answer_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = "from mmgen.parallel import distributed; distributed.PATIENCE = 0.1\n"
    code += f"distributed.initialize({address!r}, 2, 1, timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 75
    assert f"waiting for the other processes at {address}, 1 s at most\n" in done.stderr
    assert f"did not meet the others at {address} within 1 s: start all" in done.stderr


HLO = """HloModule step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (f32[4])) -> (f32[4]) {
  %whole = bf16[8,4]{1,0:T(8,128)} all-gather(%piece), dimensions={0}
  %start = (f32[2], f32[4]) all-gather-start(%other), dimensions={0}
  %done = f32[4] all-gather-done(%start)
}

%condition (carry: (f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = (f32[4]) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %total = (f32[4], s8[16]) all-reduce(%a, %b), to_apply=%add
}
"""


# As libtpu 0.0.42.1 writes them: a gather in two fusions that it runs beside, a scatter as a fusion of a sum, a ring whose
# counter rises by two, and nobody says how often.
TPU = """HloModule step, num_partitions=8

%beside (p: bf16[4]) -> bf16[16] {
  ROOT %all-gather.1 = bf16[16]{0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[2,4], dimensions={0}
}

%beside.2 (p: bf16[4]) -> bf16[16] {
  ROOT %all-gather.2 = bf16[16]{0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[2,4], dimensions={0}
}

%all-reduce-scatter (input: f32[8]) -> f32[4] {
  %all-reduce.3 = f32[8]{0} all-reduce(%input), channel_id=8, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

%ring (carry: (f32[4], u32[])) -> (f32[4], u32[]) {
  %index = u32[]{:T(128)} get-tuple-element(%carry), index=1
  %two = u32[]{:T(128)} constant(2)
  %start = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=9
  %done = f32[4]{0} collective-permute-done(%start)
  %next = u32[]{:T(128)} add(%index, %two)
  ROOT %tuple = (f32[4]{0}, /*index=1*/u32[]{:T(128)}) tuple(%done, /*index=1*/%next)
}

%turns (carry: (f32[4], u32[])) -> pred[] {
  %six = u32[]{:T(128)} constant(6)
  %index = u32[]{:T(128)} get-tuple-element(%carry), index=1
  ROOT %less = pred[]{:T(512)} compare(%index, %six), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %a = bf16[16]{0} fusion(%x), kind=kCustom, calls=%beside
  %b = bf16[16]{0} fusion(%x), kind=kCustom, calls=%beside.2
  %c = f32[4]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter
  %loop = (f32[4]{0}, u32[]) while(%init), condition=%turns, body=%ring
  %again = (f32[4]{0}, u32[]) while(%init), condition=%turns, body=%ring
  ROOT %d = f32[4]{0} all-reduce(%c), channel_id=10, replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}
}
"""


def test_collectives_in_loops_count_as_often_as_they_run():
    """A device gets all but its own share of what is gathered, and twice that of a sum."""
    gathered, summed = 12 * (8 * 4 * 2 + 16) * 3 / 4, 2 * 32 * 3 / 4
    assert hlo.collectives(HLO) == {"all-gather": (24, gathered), "all-reduce": (1, summed)}


def test_collectives_of_tpus():
    assert hlo.collectives(TPU) == {
        "all-gather": (1, 32 * 3 / 4),
        "all-reduce": (1, 2 * 16 * 3 / 4),
        "collective-permute": (6, 6 * 16),
        "reduce-scatter": (1, 16),
    }


def test_activations_are_what_forward_loops_stack():
    """The inputs of five layers; not the gradients of their weights, which the way back stacks."""

    def program(w):
        return jax.lax.scan(lambda x, w: (x * w, None), jnp.ones((3, 4)), w)[0].sum()

    assert hlo.activations(jax.make_jaxpr(jax.grad(program))(jnp.ones(5)).jaxpr) == 5 * 3 * 4 * 4


def test_operations_of_loops_branches_and_convolutions():
    def program(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y, _ = jax.lax.scan(lambda y, _: (y @ jnp.ones((5, 5)), None), y, length=3)
        return jax.lax.cond(y.sum() > 0, lambda y: y @ jnp.ones((5, 7)), lambda y: y @ jnp.ones((5, 2)) @ jnp.ones((2, 7)), y)

    shapes = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
    pixels = 2 * 4 * 4
    expected = 2 * pixels * (5 * 27 + 3 * 25 + max(35, 10 + 14))
    assert hlo.operations(jax.make_jaxpr(program)(*shapes).jaxpr) == expected
