"""The loop: resumes bitwise, stops well, keeps what it should."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError, is_full_disk
from regression import Regression, batches, experiment, run, validation

from mmgen.parallel import chips
from mmgen.parallel.watch import Watch
from mmgen.training import checkpoint, clock, loop, report
from mmgen.training.metrics import MetricsLog, read_metrics
from mmgen.training.state import TrainState


def losses(folder) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in read_metrics(folder) if "loss" in entry}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of 20 steps that was never stopped."""
    folder = tmp_path_factory.mktemp("reference")
    result = run(folder, ema=0.5)
    return result


def steps_in(folder) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def exported_step(folder) -> int:
    return json.loads((folder / "export/step.json").read_text())["step"]


def test_run_folder(reference):
    folder = reference.folder
    assert reference.step == 20 and reference.metrics["validation/loss"] < 1.0
    assert list(losses(folder)) == list(range(1, 21))
    assert json.loads((folder / "experiment.json").read_text())["steps"] == 20
    assert exported_step(folder) == 20
    assert (folder / "previews/20.txt").exists()
    assert steps_in(folder)[-2:] == [15, 20]
    entry = next(entry for entry in read_metrics(folder) if entry["step"] == 20)
    assert entry.keys() >= {"loss", "grad_norm", "learning_rate", "rows_per_second", "seconds"}
    spent = {name: entry[f"seconds/{name}"] for name in ("start", "data", "validation", "checkpoint", "preview")}
    assert min(spent.values()) > 0
    assert 0 < entry["goodput"] <= 1 - sum(spent.values()) / (entry["seconds"] + 0.001)  # which were read, and rounded, later


def test_where_the_time_went(monkeypatch):
    now = iter([0.0, 5.0, 5.0, 7.0, 8.0, 12.0, 12.0, 12.5, 20.0])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    run_clock = clock.Clock()
    run_clock.began()
    assert list(run_clock.waits("data", [1])) == [1]
    with run_clock.spend("checkpoint"):
        pass
    found = run_clock.figures()
    assert found == {"goodput": 1 - 11.5 / 20, "seconds/start": 5.0, "seconds/data": 6.0, "seconds/checkpoint": 0.5}


def test_mfu_goes_by_the_peak_of_all_devices(tmp_path, monkeypatch):
    chip = chips.Chip(("cpu",), memory=1, peak=2e-6, bandwidth=1, link=1)  # TFLOP/s; a row has 1000 operations, or 1500
    monkeypatch.setattr(report, "chip_of", lambda kind: chip)
    entry = next(entry for entry in read_metrics(run(tmp_path, steps=3).folder) if entry["step"] == 3)
    assert entry["mfu"] == pytest.approx(entry["rows_per_second"] * 1000 / 2e6)
    assert entry["mfu_full"] == pytest.approx(1.5 * entry["mfu"])


def test_a_mean_over_steps_that_ended_before_they_were_read(monkeypatch):
    """Three steps of a second each, whose figures are all read at the end: each time on the clock is one reading of it."""
    times = iter([0.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(report, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    pace = report.Pace()
    pace.rest()
    for _ in range(3):
        pace.tick()
    assert pace.seconds_a_step() == 1.0


def test_a_trace_of_some_steps(tmp_path, monkeypatch, capfd):
    """The time that the profiler takes is no time of steps. Time goes on by 0.001 s whenever it is read, and by 0.5 s there."""
    real, now = jax.profiler.start_trace, [0.0]

    def passes(seconds: float) -> float:
        now[0] += seconds
        return now[0]

    for module in (clock, report):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: passes(0.001)))
    monkeypatch.setattr(clock.jax.profiler, "start_trace", lambda folder: (passes(0.5), real(folder)))
    chosen = experiment(steps=6, every_validate=0, every_checkpoint=0)
    loop.claim(tmp_path, chosen)
    loop.fit(chosen, Regression(), tmp_path, batches, profile=(3, 4))
    entries = {entry["step"]: entry for entry in read_metrics(tmp_path)}
    assert "seconds/profile" not in entries[2] and entries[6]["seconds/profile"] > 0.5
    assert min(entries[step]["rows_per_second"] for step in range(2, 7)) > 16 / 0.4
    assert "no trace" not in capfd.readouterr().err
    loop.fit(replace(chosen, steps=7), Regression(), tmp_path, batches, profile=(3, 4))
    assert "no trace: steps 3 to 4 are not among those that are to be done, 7 to 7" in capfd.readouterr().err
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    events = [e for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines for e in line.events]
    assert {dict(event.stats)["step_num"] for event in events if event.name == "train"} == {3, 4}


def test_resumed_losses_are_bitwise_those_of_the_run_never_stopped(reference, tmp_path):
    run(tmp_path, ema=0.5, steps=7)
    run(tmp_path, ema=0.5, steps=13)
    run(tmp_path, ema=0.5, steps=20)
    assert losses(tmp_path) == losses(reference.folder)
    mine, other = (np.load(folder / "export/weights.npz")["kernel"] for folder in (tmp_path, reference.folder))
    np.testing.assert_array_equal(mine, other)


def test_a_finished_run_has_nothing_to_do(reference, capfd):
    entries = read_metrics(reference.folder)
    again = run(reference.folder, ema=0.5)
    assert again == reference and read_metrics(reference.folder) == entries


def test_another_experiment_is_refused_by_name(tmp_path):
    run(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"different: batch, optimizer.schedule.peak"):
        chosen = experiment(steps=2, batch=32)
        schedule = loop.config.Schedule("constant", peak=0.1)
        optimizer = loop.config.Optimizer(schedule=schedule, weight_decay=0.01)
        loop.claim(tmp_path, loop.config.Experiment(**{**vars(chosen), "optimizer": optimizer}))
    loop.claim(tmp_path, experiment(steps=3, every_log=7, keep=9, keep_every=30, compute_dtype="bfloat16"))


def test_another_experiment_does_not_replace_a_run_that_only_kept_its_export(tmp_path):
    run(tmp_path, steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="different: batch"):
        loop.claim(tmp_path, experiment(steps=2, batch=32))
    assert (tmp_path / "export/weights.npz").is_file()


def test_not_finite_names_the_last_good_checkpoint_and_keeps_it(tmp_path):
    with pytest.raises(UserError, match=rf"step 8 is not finite .*last good checkpoint is {tmp_path}/checkpoints/5\b"):
        run(tmp_path, Regression(broken_at=7))
    assert steps_in(tmp_path) == [5] and exported_step(tmp_path) == 5


def test_not_finite_at_a_checkpoint_step_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="step 10 is not finite"):
        run(tmp_path, Regression(broken_at=9))
    assert steps_in(tmp_path) == [5]


def test_not_finite_without_any_checkpoint(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint yet"):
        run(tmp_path, Regression(broken_at=0))


def test_keeps_the_newest_the_best_and_some_between(tmp_path, monkeypatch):
    wanted = iter([4.0, 1.0, 3.0, 5.0])
    monkeypatch.setattr(loop, "validate", lambda *_: {"validation/loss": next(wanted)})
    run(tmp_path, keep=1, keep_every=15)
    assert steps_in(tmp_path) == [10, 15, 20]
    assert checkpoint.Checkpoints(tmp_path / "checkpoints", 1).best() == 10


def test_the_export_is_written_while_training_goes_on(tmp_path, monkeypatch):
    """For it and for previews of the first process the others wait longer than for anything else."""
    later, kernels, watch, alone = threading.Event(), [], Watch(), {}
    wait = loop.Exports.wait
    monkeypatch.setattr(loop.Exports, "wait", lambda self: (alone.setdefault("export", watch._alone), wait(self)))

    class Slow(Regression):
        def export(self, weights, folder):
            assert later.wait(30)  # for a batch that training asks for long after this step
            kernels.append(np.array(weights["dense"]["kernel"]))
            super().export(weights, folder)

        def preview(self, weights, folder, step):
            alone["preview"] = watch._alone

    def watched(start):
        for index, batch in enumerate(batches(start), start):
            if index == 9:
                later.set()
            yield batch

    chosen = experiment(steps=10, keep=5)
    loop.fit(chosen, Slow(), tmp_path, watched, validation, watch=watch)
    assert alone == {"export": True, "preview": True} and not watch._alone
    straight = run(tmp_path.with_name("straight"), steps=5)
    np.testing.assert_array_equal(kernels[0], np.load(straight.folder / "export/weights.npz")["kernel"])
    assert len(kernels) == 2 and exported_step(tmp_path) == 10


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_previews_that_find_no_memory_end_no_run(tmp_path, capsys):
    class Large(Regression):
        reason = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes."

        def preview(self, weights, folder, step):
            raise jax.errors.JaxRuntimeError(self.reason)

    run(tmp_path, Large(), steps=10, every_preview=2)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "training goes on" in line]
    assert told.startswith("step 2: the device has no memory") and "--every_preview 0" in told
    assert told.endswith(f"mmgen sample {tmp_path}")
    assert losses(tmp_path).keys() == set(range(1, 11)) and steps_in(tmp_path) == [5, 10] and exported_step(tmp_path) == 10
    run(tmp_path, Large(), steps=11)
    assert "step 11: the device has no memory" in capsys.readouterr().err
    Large.reason = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(tmp_path, Large(), steps=12)


def test_exports_that_find_a_full_disk_end_no_run_but_at_its_end(tmp_path, capsys):
    class Full(Regression):
        export = full

    with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}: what was complete is intact"):
        run(tmp_path, Full())
    told = [line for line in capsys.readouterr().err.splitlines() if "training goes on" in line]
    assert [line.split()[-1] for line in told] == ["5", "10", "15"]
    assert steps_in(tmp_path) == [15, 20] and not (tmp_path / "export/step.json").exists()


def test_not_a_number_is_never_the_best(tmp_path, monkeypatch):
    wanted = iter([4.0, float("nan"), 3.0, float("nan")])
    monkeypatch.setattr(loop, "validate", lambda *_: {"validation/loss": next(wanted)})
    run(tmp_path, keep=1)
    assert steps_in(tmp_path) == [15, 20]


def test_training_goes_on_where_the_disk_is_full_for_a_while(tmp_path, monkeypatch, reference, capsys):
    """No room at step 10; of step 15 it shows in the background, when the next is due."""
    save, wait, late = checkpoint.ocp.CheckpointManager.save, checkpoint.ocp.CheckpointManager.wait_until_finished, []

    def sometimes(manager, step, **about):
        done = full() if step == 10 else save(manager, step, **about)
        late.extend([step] if step == 15 else [])
        return done

    def shows_late(manager):
        wait(manager)
        if late:
            full(late.pop())

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", sometimes)
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "wait_until_finished", shows_late)
    run(tmp_path, ema=0.5, keep=1)
    told = [line for line in capsys.readouterr().err.splitlines() if "training goes on" in line]
    assert [line.partition("on; ")[2] for line in told] == [f"the last good checkpoint is that of step {n}" for n in (5, 15)]
    assert losses(tmp_path) == losses(reference.folder) and steps_in(tmp_path)[-1] == 20 and exported_step(tmp_path) == 20


def test_full_disk_at_the_last_checkpoint_is_one_clear_line_and_older_ones_stay(tmp_path, monkeypatch):
    run(tmp_path, steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}: what was complete"):
            run(tmp_path, steps=10)
    assert steps_in(tmp_path) == [5]
    assert run(tmp_path, steps=10).step == 10


def test_full_disk_that_shows_in_the_background(tmp_path, monkeypatch):
    real = checkpoint.ocp.CheckpointManager.wait_until_finished

    def full(manager):
        real(manager)
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 80881 bytes to file 18: No space left on device")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "wait_until_finished", full)
    with pytest.raises(UserError, match="no space left on the disk of"):
        run(tmp_path, steps=5)


def test_full_disk_is_recognised_however_it_is_wrapped():
    inner = OSError(errno.ENOSPC, "No space left on device")
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    assert is_full_disk(outer)
    assert is_full_disk(ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]"))
    assert not is_full_disk(ValueError("something else"))


def damage(folder: Path, how: str) -> None:
    """What happens to the files of a checkpoint on a disk that fails, or that a copy did not finish."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if how == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "half copied":
        for path in files:
            path.unlink() if "ocdbt" in str(path) else None
    elif how == "cut":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        largest = bytearray(files[-1].read_bytes())
        for place in [len(largest) // 2] if how == "one bit flipped" else range(0, len(largest), 1000):
            largest[place] ^= 1
        files[-1].write_bytes(largest)


@pytest.mark.parametrize("how", ["empty folder", "half copied", "cut", "one bit flipped"])
def test_a_damaged_checkpoint_is_named_and_passed_over(reference, tmp_path, how):
    run(tmp_path, ema=0.5, steps=10, keep=3)
    damage(tmp_path / "checkpoints/10", how)
    with pytest.warns(UserWarning, match=r"checkpoints/10 .*moved it to damaged-10, continuing from step 5"):
        run(tmp_path, ema=0.5, steps=20, keep=3)
    assert losses(tmp_path) == losses(reference.folder)
    assert steps_in(tmp_path) == [10, 15, 20] and (tmp_path / "checkpoints/damaged-10").is_dir()


def test_checkpoints_may_have_a_folder_of_their_own(tmp_path, reference):
    """A run folder that is lost with its machine is made anew."""
    run(tmp_path / "run", ema=0.5, steps=10, checkpoints=str(tmp_path / "kept"))
    assert not (tmp_path / "run/checkpoints").exists()
    run(tmp_path / "run", ema=0.5, checkpoints=str(tmp_path / "kept"))
    assert losses(tmp_path / "run") == losses(reference.folder)
    with pytest.raises(UserError, match="holds a run of another experiment .different: checkpoints"):
        run(tmp_path / "run", ema=0.5)


def test_a_checkpoint_of_another_model_is_no_damaged_one(tmp_path):
    class Longer(Regression):
        def init(self, key):
            params, extra = super().init(key)
            return {"dense": params["dense"], "more": jnp.zeros(3)}, extra

    run(tmp_path / "one", steps=5)
    kept = tmp_path / "one/checkpoints"
    with pytest.raises(UserError, match=r"/5 holds another model \(params.more is nothing there, \[3\] here\): give this run"):
        run(tmp_path / "two", Longer(), checkpoints=str(kept))
    run(tmp_path / "three", Longer(), steps=10)
    (tmp_path / "three/checkpoints/10").rename(kept / "10")
    with pytest.raises(UserError, match=r"/10 holds another model \(params.more is \[3\] there, nothing here\)"):
        run(tmp_path / "one")
    assert steps_in(tmp_path / "one") == [5, 10]


def test_a_bucket_is_named_as_it_is(monkeypatch):
    """pathlib would make gs:/bucket of it, a folder here."""
    asked = []
    monkeypatch.setattr(checkpoint, "place", lambda folder: None)
    monkeypatch.setattr(checkpoint.Checkpoints, "_pass_over_unfinished", lambda self: None)
    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", lambda folder, **about: asked.append(folder))
    checkpoint.Checkpoints("gs://bucket/run", 1)
    assert [str(folder / "5") for folder in asked] == ["gs://bucket/run/5"]


@pytest.fixture
def saved(tmp_path):
    """A state at step 5, the checkpoint that it is saved in, and what it looks like: in another type, where one is given."""
    kernels = {name: jax.random.normal(jax.random.key(i), (512, 512)) for i, name in enumerate("abc")}
    state = TrainState(jnp.int32(5), kernels, {}, {}, {})

    def like(dtype=None):
        types = replace(jax.tree.map(lambda x: dtype or x.dtype, state), step=jnp.dtype("int32"))
        return jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), state, types)

    with checkpoint.Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(state, {}, None)
        checkpoints.wait()
        yield state, checkpoints, like


def test_what_is_read_is_copied_piece_by_piece_into_what_a_step_can_take_over(saved, monkeypatch):
    state, checkpoints, like = saved
    read, left, real = [], [], checkpoint._taken_over

    def watched(x, wanted):
        read.append(x)
        copy = real(x, wanted)
        left.append(sum(not x.is_deleted() for x in read))
        return copy

    monkeypatch.setattr(checkpoint, "_taken_over", watched)
    restored = checkpoints.restore(5, like())
    assert len(read) == 4 and not any(left)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    places = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(restored)}
    after = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(restored)
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(after)} == places


def test_a_state_can_be_restored_in_another_type(saved):
    state, checkpoints, like = saved
    restored = checkpoints.restore(5, like(jnp.dtype("bfloat16")))
    assert int(restored.step) == 5
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), restored.params, state.params)


@pytest.mark.parametrize("how", ["one bit flipped", "many bits flipped"])
def test_bits_that_flip_in_a_large_file_are_noticed(tmp_path, saved, how):
    """Small arrays lie in files that have checksums of their own, large ones do not: there it is our sum that differs, unless
    the bit was one of the compression's. In another type it is noticed, too."""
    _, checkpoints, like = saved
    damage(tmp_path / "5", how)
    for dtype in (None, jnp.dtype("bfloat16")):
        with pytest.raises(UserError, match="cannot read the checkpoint"):
            checkpoints.restore(5, like(dtype))


def test_nothing_is_moved_where_no_checkpoint_can_be_read(tmp_path):
    run(tmp_path, steps=5)
    damage(tmp_path / "checkpoints/5", "cut")
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*checkpoints/5 .*damaged, or of another version"):
        run(tmp_path, steps=10)
    assert steps_in(tmp_path) == [5]


def test_sigterm_saves_and_exits(tmp_path, reference):
    def interrupted(start):
        for index, batch in enumerate(batches(start), start):
            if index == 8:
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    chosen, sent = experiment(ema=0.5), []
    loop.claim(tmp_path, chosen)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        loop.fit(chosen, Regression(), tmp_path, interrupted, validation)
    assert stopped.value.code == 143 and steps_in(tmp_path)[-1] == 9
    assert time.monotonic() - sent[0] < 15  # the least that preempted machines are given
    assert [entry["step"] for entry in read_metrics(tmp_path) if "validation/loss" in entry] == [5]  # no time for it at step 9
    assert signal.getsignal(signal.SIGTERM) is before
    run(tmp_path, ema=0.5)
    assert losses(tmp_path) == losses(reference.folder)


def start_process(folder: Path, steps: int, pause: float) -> subprocess.Popen:
    script = Path(__file__).parent / "regression.py"
    with (folder / "stderr").open("w") as errors:
        return subprocess.Popen([sys.executable, script, folder, str(steps), str(pause)], stderr=errors)


def test_killed_at_any_moment_continues_from_the_last_complete_checkpoint(tmp_path):
    process = start_process(tmp_path, 10_000, 0.002)
    try:
        deadline = time.monotonic() + 60
        while len(losses(tmp_path)) < 40 and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            time.sleep(0.05)
        time.sleep(np.random.default_rng().uniform(0, 0.3))
    finally:
        process.kill()
        process.wait()
    done = max(losses(tmp_path))
    result = run(tmp_path, steps=done + 5)
    assert result.step == done + 5 and steps_in(tmp_path)[-1] == done + 5
    straight = run(tmp_path.with_name("straight"), steps=done + 5, every_checkpoint=0)
    assert losses(tmp_path) == losses(straight.folder)


def test_tensorboard_drops_what_a_run_wrote_before_its_first_checkpoint(tmp_path, monkeypatch):
    purged = []
    fake = types.SimpleNamespace(SummaryWriter=lambda folder, purge_step: purged.append(purge_step))
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    for step in (0, 5):
        MetricsLog(tmp_path, step, clock.Clock()).close()
    assert purged == [1, 6]


def test_metrics_drop_what_comes_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0, clock.Clock())
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    MetricsLog(tmp_path, 2, clock.Clock()).close()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2]
