"""RUN/export/: the weights of the newest checkpoint in the form that is loaded, written while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mmgen_tokenizers.files import write_json

from mmgen.parallel.distributed import first_process
from mmgen.parallel.mesh import on_host
from mmgen.training.state import Tree

STEP = "step.json"  # {"step": which weights these are}; absent while they are being replaced


def write_export(task, weights: Tree, folder: Path, step: int) -> None:
    """The weights of that step, and last which step it is."""
    (folder / STEP).unlink(missing_ok=True)
    task.export(weights, folder)
    write_json(folder / STEP, {"step": step})


class Exports:
    """Writes one export at a time, in a thread of its own. A killed run has the old weights or the new ones, whole."""

    def __init__(self, task, folder: Path):
        self._task, self._folder = task, folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="export")
        self._pending: Future | None = None

    def start(self, weights: Tree, step: int) -> None:
        """Returns when the weights are copied to the host. Errors of the export before come up here."""
        self.wait()
        copied = on_host(weights)
        if first_process():
            self._pending = self._thread.submit(write_export, self._task, copied, self._folder, step)

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._thread:
            self.wait()
