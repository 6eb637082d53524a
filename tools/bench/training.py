"""Steps of training on one device: their pace, MFU and memory, beside LlamaGen's own PyTorch code.

    python tools/bench/training.py --models GPT-L GPT-XL GPT-3B --tokens 256 576 --batches 32 64 --remat no yes \\
        --attention xla cudnn --peer PATH/TO/LlamaGen --peer-forms eager compiled --out tools/bench/results/training_h200.json
    python tools/bench/training.py --models VAR-d16 VAR-d30 --batches 32 64 --attention xla blocks --out var_training_h200.json

PATH is a checkout of the public repository; torch must be importable. A step is forward, backward, clipping and AdamW on random
ids, without dropout; both keep weights in float32 and multiply in bfloat16, on a CPU in float32. "compiled": by torch.compile,
as its authors train. A row is the best of --repeats times --steps steps, after one time that is not counted, in a process of
its own: it has the device's memory to itself, and tells its own peak (JAX takes three quarters of a GPU's, unless
XLA_PYTHON_CLIENT_MEM_FRACTION is set). What does not fit is a row, too. VAR has the tokens of its ten scales, whatever --tokens
says. What has been measured stands in OUT.part until all is: the same command goes on after a stop. Beside OUT, a .json, stands
the table (.md).

MFU: the operations that the model needs (mmgen/model/flops.py: without those that remat repeats; causal, or all pairs of slots)
against the peak of the device's data sheet, where one is known. "product_teraflops": what a large product reached in this run.
"""

import argparse
import functools
import itertools
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import peers
from common import Stages, best_of, cores, matmul_rate, report, run, write
from mmgen_tokenizers.families.multiscale import MultiScale

from mmgen.config import Data, Experiment, GeneratorTask, TokenShards
from mmgen.model.config import Dropout, GeneratorConfig
from mmgen.model.flops import training_operations
from mmgen.model.layers import compute_dtype
from mmgen.parallel.chips import GIB, Chip, chip_of
from mmgen.pretrained import llamagen, var
from mmgen.report import Table
from mmgen.training import tasks
from mmgen.training.state import initial_state
from mmgen.training.step import make_step

MODELS = (*llamagen.SIZES, *(f"VAR-{size}" for size in var.SIZES if size != "d36"))  # that is of 512 pixels
ATTENTION = get_args(GeneratorConfig.__annotations__["attention"])
KEPT = get_args(get_args(GeneratorConfig.__annotations__["remat_keep"])[0])
FORMS = ("eager", "compiled")
TOO_LARGE = ("RESOURCE_EXHAUSTED", "out of memory")  # how XLA and torch say it
TIME = "milliseconds"
COLUMNS = {
    "model": "model", "tokens": "tokens", "batch": "batch", "code": "code", "remat": "remat", "attention": "attention",
    TIME: "ms a step", "tokens_per_second": "tokens/s", "teraflops_causal": "TFLOP/s, causal",
    "mfu_causal": "MFU, causal", "mfu_full": "MFU, full", "memory_gib": "memory, GiB",
}  # fmt: skip
Steps = Callable[[int], float]  # does so many, and tells the last one's loss


class Setting(NamedTuple):
    model: str
    tokens: int
    batch: int
    code: str = "mmgen"
    remat: str = ""  # "", "yes", or what it keeps
    attention: str = ""


class Found(NamedTuple):
    seconds: float
    loss: float
    peak: int | None  # bytes; a CPU does not tell


def config_of(s: Setting) -> GeneratorConfig:
    if s.model in llamagen.SIZES:
        config = llamagen.preset(s.model, tokens=s.tokens)
    else:
        config = var.preset(s.model.removeprefix("VAR-"), MultiScale())
    kept = tuple(name for name in KEPT if name in s.remat)
    return replace(config, dropout=Dropout(), remat=bool(s.remat), remat_keep=kept, attention=s.attention or "xla")


def our_steps(config: GeneratorConfig, batch: int) -> Steps:
    """The step of `mmgen train`, on one batch."""
    experiment = Experiment(GeneratorTask(config), Data(TokenShards("none that is read")), steps=1000, batch=batch)
    task = tasks.make(experiment, None)
    optimizer = task.optimizer(experiment)
    step, state = make_step(experiment, task, optimizer), [initial_state(task, optimizer, 0, False)]
    random, limits = np.random.default_rng(0), {"ids": config.layout.codebook_size, "label": config.condition.classes}
    rows = {name: jnp.asarray(random.integers(0, limits[name], x.shape), x.dtype) for name, x in task.inputs().items()}

    def steps(count: int) -> float:
        for _ in range(count):
            state[0], metrics = step(state[0], {}, rows)
        return float(jax.block_until_ready((state[0], metrics["loss"]))[1])

    return steps


def peer_steps(path: str, s: Setting) -> Steps:
    """That of its train_c2i.py, without dropout."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as there
    model, device = peers.llamagen(path, s.model, s.tokens, "trained")
    parameters, forward = list(model.train().parameters()), torch.compile(model) if "compiled" in s.code else model
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=device == "cuda")
    ids = torch.randint(16384, (s.batch, s.tokens), device=device)
    labels = torch.randint(peers.CLASSES, (s.batch,), device=device)

    def steps(count: int) -> float:
        for _ in range(count):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                _, loss = forward(cond_idx=labels, idx=ids[:, :-1], targets=ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peers.synchronize(device)
        return loss.item()

    return steps


def peak(ours: bool) -> int | None:
    """Bytes of the device's memory that this process held at most."""
    if ours:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def measured(s: Setting, path: str | None, count: int, repeats: int) -> Found | None:
    """None where it does not fit."""
    warnings.filterwarnings("error", message="attention ")  # another one than what the row says
    try:
        ours = s.code == "mmgen"
        steps, losses = our_steps(config_of(s), s.batch) if ours else peer_steps(path, s), []
        seconds = best_of(lambda: losses.append(steps(count)), repeats) / count
        return Found(seconds, losses[-1], peak(ours))
    except RuntimeError as error:  # XLA's and torch's own are of that kind
        if any(word in str(error) for word in TOO_LARGE):
            return None
        raise


def apart(function: Callable, *arguments) -> Any:
    """What it gives, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def settings(a: argparse.Namespace) -> Iterator[Setting]:
    """Ours and the peer's, for each model, number of tokens and batch size."""
    sizes = dict.fromkeys((model, config_of(Setting(model, n, 1)).layout.sites) for model in a.models for n in a.tokens)
    remats = ["" if remat == "no" else " ".join(a.keep) or "yes" for remat in a.remat]
    for (model, tokens), batch in itertools.product(sizes, a.batches):
        yield from (Setting(model, tokens, batch, "mmgen", *way) for way in itertools.product(remats, a.attention))
        forms = a.peer_forms if a.peer and model in llamagen.SIZES else ()
        yield from (Setting(model, tokens, batch, f"LlamaGen's own, {form}") for form in forms)


def row(s: Setting, found: Found | None, chip: Chip | None) -> dict:
    if found is None:
        return s._asdict() | {"fits": False}
    needed = training_operations(config_of(s))._asdict()
    rates = {name: s.batch * count / found.seconds / 1e12 for name, count in needed.items()}
    told = {TIME: round(1e3 * found.seconds, 2), "tokens_per_second": round(s.batch * s.tokens / found.seconds, 1)}
    told |= {f"teraflops_{name}": float(f"{rate:.4g}") for name, rate in rates.items()}
    told |= {f"mfu_{name}": round(rate / chip.peak, 4) for name, rate in rates.items()} if chip else {}
    told |= {"memory_gib": round(found.peak / GIB, 2)} if found.peak else {}
    return s._asdict() | {"fits": True} | told | {"loss": round(found.loss, 3)}


def table(rows: list[dict]) -> str:
    """Markdown, of what is known anywhere."""
    shown = {key: name for key, name in COLUMNS.items() if key == TIME or any(key in each for each in rows)}
    return Table("", list(shown.values()), [[_cell(each, key) for key in shown] for each in rows]).markdown + "\n"


def _cell(each: dict, key: str) -> str:
    if key == TIME and not each["fits"]:
        return "does not fit"
    return f"{each[key]:.1%}" if key.startswith("mfu") and key in each else str(each.get(key, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["GPT-B"], choices=MODELS)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256], help="of a picture, square numbers")
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--remat", nargs="+", default=["no"], choices=("no", "yes"))
    parser.add_argument("--keep", nargs="*", default=[], choices=KEPT, help="products that remat keeps")
    parser.add_argument("--attention", nargs="+", default=["xla"], choices=ATTENTION)
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--peer-forms", nargs="+", default=["eager"], choices=FORMS)
    parser.add_argument("--steps", type=int, default=10, help="that are timed together")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    stages = Stages(a.out.with_name(a.out.name + ".part"))
    stages.settle({"steps": a.steps, "repeats": a.repeats, "cores": cores()})
    found = {}
    for s in settings(a):
        one = functools.partial(apart, measured, s, a.peer, a.steps, a.repeats)
        found[s] = stages.once(", ".join(map(str, s)), one)
    # Only now, for a device that JAX has opened here has no room for others.
    dtype, chip = compute_dtype(None), chip_of(jax.devices()[0].device_kind)
    rows = [row(s, each and Found(*each), chip) for s, each in found.items()]
    product = matmul_rate(2048 if jax.default_backend() == "cpu" else 8192, dtype) / 1e3
    what = "training steps of one device; MFU is the share of the data sheet's peak that the model's operations take"
    about = {"dtype": dtype.name, "product_teraflops": float(f"{product:.4g}")}
    write(report(what, rows, a.peer, "LlamaGen") | about, a.out)
    a.out.with_suffix(".md").write_text(table(rows))
    stages.path.unlink()


if __name__ == "__main__":
    run(main)
