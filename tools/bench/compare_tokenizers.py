"""Tokenizers of all families beside each other, and what a generator makes of the ids of each.

    python tools/bench/compare_tokenizers.py OUT --minutes 1.5 --generator-minutes 1 --bits 512 --results FIGURES.json

Every family of mmgen/families.py is trained on the same pictures (64 x 64 pixels: the emoji of the training set and as many
crops of photographs, from $MMGEN_DATA or ../shared/data) for the same time, at the same bits a picture. Tested on unseen emoji
and on crops of the Kodak photographs. Then one small next-token model is trained for the same time on the ids of captioned
scenes (shapes, 64 x 64) and draws scenes of unseen captions, which a program checks.

Time is that of training steps, without compilation: a few steps are timed first, which says how many fit. Each stage leaves
its figures in OUT; killed and started again, the script goes on where it was. Two of them may work on different families in
the same OUT, each pinned to half of the cores; the last one writes the whole table. --generator-minutes 0: tokenizers only.
"""

import argparse
import functools
import itertools
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import read_json, temporary_beside, write_atomically, write_json
from mmgen_tokenizers.image_folder import ImageFolderSource
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.metrics import psnr, ssim
from mmgen_tokenizers.pictures import to_float, to_uint8, write_png
from mmgen_tokenizers.shards import MANIFEST, ShardWriter

from mmgen import families
from mmgen import generator as generators
from mmgen.config import Data, Experiment, GeneratorTask, ImageFolder, Optimizer, Schedule, TokenShards
from mmgen.data.shapes import draw, parse, scene, verify_all
from mmgen.evaluation.shapes import Judged
from mmgen.model.config import BlockConfig, GeneratorConfig, Sampling, TextCondition
from mmgen.training import tasks
from mmgen.training.loop import train
from mmgen.training.metrics import read_metrics
from mmgen.training.state import initial_state
from mmgen.training.step import make_step

SIZE = families.SIZE
PROBED = 4.0  # seconds of steps that are timed before a training
SCENES = {"train": 16384, "test": 512}  # that the generator learns from, and whose likelihood is measured
DRAWN = 256  # scenes for new captions, at most
COUNTED = 1024  # training pictures whose ids say how many of the codes are in use


# Stages --------------------------------------------------------------------------------------------------------------


def contend(out: Path, family: str, bits: int, minutes: float, generator_minutes: float) -> None:
    """All stages of one tokenizer; those that are done are not done again."""
    folder = out / f"{family}-{bits}"
    experiment = tokenizer_experiment(out, family, bits)
    once(folder / "tokenizer.json", lambda: timed_training(experiment, folder / "tokenizer", minutes))
    tokenizer = mt.load(folder / "tokenizer")
    once(folder / "pictures.json", lambda: picture_figures(out, tokenizer))
    if generator_minutes:
        layout = flat(tokenizer.layout)
        for split in SCENES:
            write_tokens(tokenizer, layout, split, folder / split)
        experiment = generator_experiment(folder, layout)
        once(folder / "generator.json", lambda: timed_training(experiment, folder / "generator", generator_minutes))
        once(folder / "scenes.json", lambda: scene_figures(tokenizer, folder / "generator"))


def once(path: Path, make: Callable[[], dict]) -> dict:
    """What `make` gives, kept in a file: a stage that is done has one."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
        print(f"{path.parent.name}: {path.stem} {json.dumps(read_json(path))}", flush=True)
    return read_json(path)


def tokenizer_experiment(out: Path, family: str, bits: int) -> Experiment:
    experiment = families.experiment(family, bits)
    data = Data(ImageFolder(str((out / "pictures").absolute())), size=SIZE, flip=True)
    return replace(experiment, data=data, validation=None)


def generator_experiment(folder: Path, layout: TokenLayout) -> Experiment:
    """The same model, whatever the ids."""
    block = BlockConfig(width=96, heads=3, mlp=256, qk_norm=True)
    model = GeneratorConfig(layout=layout, condition=TextCondition(vocabulary=128, length=20), block=block, depth=3)
    sampling = Sampling(guidance=2.0, temperature=0.5)
    tokens = {split: Data(TokenShards(str((folder / split).absolute()))) for split in SCENES}
    schedule = Schedule(peak=3e-3, warmup=50, end=0.02)
    task = GeneratorTask(model, sampling=sampling)
    return Experiment(task, tokens["train"], tokens["test"], batch=16, optimizer=Optimizer(schedule))


def timed_training(experiment: Experiment, run: Path, minutes: float) -> dict[str, float]:
    """Trains for as many steps as fit into so many minutes; returns what was done."""
    pace = once(run.with_suffix(".pace.json"), lambda: {"seconds_a_step": seconds_a_step(experiment, run)})
    steps = max(10, round(60 * minutes / pace["seconds_a_step"]))
    schedule = replace(experiment.optimizer.schedule, warmup=min(50, steps // 10))
    optimizer = replace(experiment.optimizer, schedule=schedule)
    every = {"every_validate": steps, "every_preview": 0, "every_checkpoint": math.ceil(steps / 3)}
    done = train(replace(experiment, steps=steps, optimizer=optimizer, **every), run)
    unit, per_row = tasks.make(experiment, run).unit
    rates = [entry[f"{unit}_per_second"] for entry in read_metrics(run) if f"{unit}_per_second" in entry]
    seconds = steps * experiment.batch * per_row * float(np.mean(1 / np.array(rates)))
    return {**done.metrics, "steps": steps, "rows": steps * experiment.batch, "seconds": seconds, "cores": cores()}


def seconds_a_step(experiment: Experiment, run: Path) -> float:
    """Of training, reading the data included, without compilation."""
    run.mkdir(parents=True, exist_ok=True)
    task = tasks.make(experiment, run)
    optimizer = task.optimizer(experiment)
    step, state = make_step(experiment, task, optimizer), initial_state(task, optimizer, experiment.seed, False)
    times, start = [], time.perf_counter()
    for batch in task.training_batches(0):
        state, metrics = step(state, task.frozen, task.prepare(batch))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        if len(times) > 5 and sum(times[2:]) > PROBED:  # the first two wait for the compiler and for the data
            return float(np.mean(times[2:]))


# Pictures ------------------------------------------------------------------------------------------------------------


def shared_data() -> Path:
    return Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def crops(folder: Path, count: int) -> np.ndarray:
    """uint8 [count, SIZE, SIZE, 3]: squares from anywhere in the pictures of a folder, from each in turn."""
    source, rng = ImageFolderSource(folder), np.random.default_rng(0)
    pictures = [source[i]["image"] for i in range(len(source))]
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        top, left = (rng.integers(size - SIZE + 1) for size in picture.shape[:2])
        found.append(picture[top : top + SIZE, left : left + SIZE])
    return np.stack(found)


def folder_of(name: str) -> np.ndarray:
    source = ImageFolderSource(shared_data() / name)
    return np.stack([source[i]["image"] for i in range(len(source))])


def training_pictures(folder: Path) -> None:
    """Emoji and as many crops of photographs, as a folder that appears whole or not at all."""
    if folder.is_dir():
        return
    emoji, part = folder_of("emoji/train"), temporary_beside(folder)
    part.mkdir(parents=True)
    for i, picture in enumerate(np.concatenate([emoji, crops(shared_data() / "photos", len(emoji))])):
        write_png(part / f"{i:05d}.png", picture)
    if not folder.is_dir():  # another process may have been as fast
        part.rename(folder)


@functools.cache
def test_pictures() -> dict[str, np.ndarray]:
    return {"emoji": folder_of("emoji/test"), "kodak": crops(shared_data() / "kodak", 240)}


def picture_figures(out: Path, tokenizer: mt.Tokenizer) -> dict[str, object]:
    """What the tokenizer is, and what it does to pictures."""
    layout = tokenizer.layout
    found = {
        "sites": layout.sites,
        "groups": layout.groups,
        "codes": layout.codebook_size,
        "bits": families.bits_of(tokenizer.config),
        "parameters": sum(p.size for p in jax.tree.leaves(tokenizer.params)),
    }
    for name, originals in test_pictures().items():
        restored = to_float(to_uint8(tokenizer.decode(tokenizer.encode(originals))))
        for kind, judge in (("psnr", psnr), ("ssim", ssim)):
            found[f"{kind}_{name}"] = float(np.mean(judge(restored, to_float(originals))))
    found["usage"] = usage(tokenizer, out / "pictures")
    if len(layout.prefixes) > 1:
        found["psnr_of_first"] = of_prefixes(tokenizer)
    return found


def usage(tokenizer: mt.Tokenizer, folder: Path) -> float:
    """Share of the codes that the ids of training pictures hold, mean over groups."""
    source = ImageFolderSource(folder)
    chosen = np.random.default_rng(0).permutation(len(source))[:COUNTED]
    ids = tokenizer.encode(np.stack([source[int(i)]["image"] for i in chosen]))
    ids = ids.reshape(-1, tokenizer.layout.groups)
    return float(np.mean([len(np.unique(group)) for group in ids.T]) / tokenizer.layout.codebook_size)


def of_prefixes(tokenizer: mt.Tokenizer) -> dict[str, float]:
    """PSNR of the test pictures by the number of ids that are decoded: 1, 2, 4 ..., or whole scales."""
    layout, originals = tokenizer.layout, np.concatenate(list(test_pictures().values()))
    ids, truth = tokenizer.encode(originals), to_float(originals)
    powers = {2**i for i in range(layout.sites.bit_length())} | {layout.sites}
    lengths = sorted(powers & set(layout.prefixes)) if layout.ordered else layout.prefixes
    return {str(k): float(np.mean(psnr(tokenizer.decode(ids[:, :k]), truth))) for k in lengths}


# Scenes --------------------------------------------------------------------------------------------------------------


@functools.cache
def scenes(split: str) -> tuple[np.ndarray, list[str]]:
    """Pictures and captions of one thing or two: with three they take longer to learn than there is time."""
    found = (scene(index, split) for index in itertools.count())
    few = list(itertools.islice((made for made in found if len(made.objects) < 3), SCENES[split]))
    return np.stack([draw(made, SIZE) for made in few]), [made.caption for made in few]


def asked_for() -> tuple[np.ndarray, list[str]]:
    """Of the test scenes the first that say something new."""
    new = {}
    for picture, caption in zip(*scenes("test"), strict=True):
        new.setdefault(parse(caption), (picture, caption))
    pictures, captions = zip(*list(new.values())[:DRAWN], strict=True)
    return np.stack(pictures), list(captions)


def flat(layout: TokenLayout) -> TokenLayout:
    """Scales as one sequence, coarse to fine: a next-token model reads one grid."""
    return TokenLayout("sequence", 1, layout.sites, layout.codebook_size, layout.groups) if layout.scales else layout


def write_tokens(tokenizer: mt.Tokenizer, layout: TokenLayout, split: str, folder: Path) -> None:
    if (folder / MANIFEST).is_file():  # written last
        return
    pictures, captions = scenes(split)
    with ShardWriter(folder, tokenizer.fingerprint, layout) as writer:
        for ids, caption in zip(tokenizer.encode(pictures), captions, strict=True):
            writer.add(ids[None], caption=caption)


def scene_figures(tokenizer: mt.Tokenizer, run: Path) -> dict[str, float]:
    """What the generator has learned: bits that it needs for a scene, and how many of its scenes show what was asked."""
    layout = tokenizer.layout
    nats = [entry["validation/loss"] for entry in read_metrics(run) if "validation/loss" in entry][-1]
    originals, captions = asked_for()
    start = time.perf_counter()
    tokens = generators.load(run).generate(prompts=captions).tokens
    seconds = time.perf_counter() - start
    drawn, restored = (judged(captions, originals, tokenizer.decode(ids)) for ids in (tokens, tokenizer.encode(originals)))
    return {
        "bits_needed": nats * layout.sites * layout.groups / math.log(2),
        "reconstructions_right": restored.places_right,
        "things_right": things_right(drawn),
        "objects_right": drawn.objects_right,
        "places_right": drawn.places_right,
        "seconds_drawing": seconds,
    }


def judged(captions: list[str], originals: np.ndarray, pictures: np.ndarray) -> Judged:
    pictures = to_uint8(pictures)
    return Judged(captions, originals, pictures, verify_all(captions, pictures))


def things_right(drawn: Judged) -> float:
    """Mean share of the named things that are there in colour and shape; what was not named counts against it."""
    shares = []
    for caption, verdict in zip(drawn.captions, drawn.verdicts, strict=True):
        asked = Counter((thing.colour, thing.shape) for thing in parse(caption).things)
        shown = Counter((o.thing.colour, o.thing.shape) for o in verdict.found)
        most = max(asked.total(), shown.total() + len(verdict.unclear))
        shares.append((asked & shown).total() / most)
    return float(np.mean(shares))


# Table and plot ------------------------------------------------------------------------------------------------------


def rows(out: Path) -> list[dict]:
    """The figures of all tokenizers that are done, in the order of bits and families."""
    found = []
    for bits in families.BITS:
        for family in families.FAMILIES:
            folder = out / f"{family}-{bits}"
            if not (folder / "pictures.json").is_file():
                continue
            row = {"family": family, **read_json(folder / "pictures.json")}
            trained = read_json(folder / "tokenizer.json")
            row["tokenizer"] = {name: trained[name] for name in ("steps", "rows", "seconds", "cores")}
            if (folder / "scenes.json").is_file():
                trained = read_json(folder / "generator.json")
                row["generator"] = {name: trained[name] for name in ("steps", "rows", "seconds", "cores")}
                row |= read_json(folder / "scenes.json")
            found.append(row)
    return found


COLUMNS: dict[str, Callable[[dict], str]] = {
    "family": lambda row: row["family"],
    "ids": lambda row: f"{row['sites']}{' x 2' if row['groups'] > 1 else ''}",
    "codes": lambda row: f"{row['codes']}",
    "bits": lambda row: f"{row['bits']:.0f}",
    "parameters": lambda row: f"{row['parameters'] / 1e6:.2f}M",
    "pictures seen": lambda row: f"{row['tokenizer']['rows'] / 1000:.1f}k",
    "PSNR emoji": lambda row: f"{row['psnr_emoji']:.2f}",
    "PSNR Kodak": lambda row: f"{row['psnr_kodak']:.2f}",
    "SSIM emoji": lambda row: f"{row['ssim_emoji']:.3f}",
    "SSIM Kodak": lambda row: f"{row['ssim_kodak']:.3f}",
    "usage": lambda row: f"{row['usage']:.1%}",
    "scenes seen": lambda row: f"{row['generator']['rows'] / 1000:.1f}k",
    "bits needed": lambda row: f"{row['bits_needed']:.0f}",
    "readable": lambda row: f"{row['reconstructions_right']:.1%}",
    "things": lambda row: f"{row['things_right']:.1%}",
    "captions": lambda row: f"{row['objects_right']:.1%}",
}


def table(found: list[dict]) -> str:
    """Markdown; "-" for what was not measured."""

    def cell(show: Callable, row: dict) -> str:
        try:
            return show(row)
        except KeyError:
            return "-"

    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *([cell(show, row) for show in COLUMNS.values()] for row in found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(found: list[dict]) -> str:
    """SVG: across what the tokenizer keeps of pictures, upwards what the generator gets right; discs grow with the bits."""
    width, height, left, bottom, top, right = 720, 420, 60, 50, 20, 110
    points = [((row["psnr_emoji"] + row["psnr_kodak"]) / 2, 100 * row["things_right"], row) for row in found]
    low, high = math.floor(min(x for x, _, _ in points)), math.ceil(max(x for x, _, _ in points))
    most = max(10, 10 * math.ceil(max(y for _, y, _ in points) / 10))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / max(1, high - low) * (width - left - right)
        return left + across, height - bottom - y / most * (height - top - bottom)

    parts = []
    for y in range(0, most + 1, 10):
        at = place(low, y)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{y}</text>')
    for x in range(low, high + 1):
        parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{x}</text>')
    for x, y, row in sorted(points, key=lambda point: point[1]):
        (across, up), radius = place(x, y), math.sqrt(row["bits"]) / 4
        parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius:.1f}" fill="#2a6fd6" fill-opacity="0.6"/>')
        label = f"{row['family']} {row['bits']:.0f}"
        parts.append(f'<text x="{across + radius + 4:.1f}" y="{up + 4:.1f}">{label}</text>')
    parts.append(f'<text x="{left}" y="{height - 10}">PSNR of reconstructed emoji and photographs, dB</text>')
    parts.append(f'<text x="{left}" y="14">things right in drawn scenes, %</text>')
    body = f'<rect width="{width}" height="{height}" fill="white"/>' + "".join(parts)
    style = 'font-family="sans-serif" font-size="13" fill="#17181c"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>{body}</svg>\n'


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def report(found: list[dict], command: str, path: Path | None) -> None:
    """The table on the terminal; with `path` (.json) all figures, the table (.md) and the plot (.svg) too."""
    print(table(found))
    if path is None:
        return
    write_json(
        path,
        {
            "what": "tokenizers of all families, trained alike; then one generator, trained alike on the ids of each",
            "device": f"{jax.devices()[0].device_kind}, {platform.machine()}; cores of each training: see the figures",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("jax", "flax", "optax")}},
            "date": date.today().isoformat(),
            "command": command,
            "figures": found,
        },
    )
    write_atomically(path.with_suffix(".md"), table(found).encode())
    drawn = [row for row in found if "things_right" in row]
    if drawn:
        write_atomically(path.with_suffix(".svg"), plot(drawn).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where runs and figures are kept")
    parser.add_argument("--minutes", type=float, default=1.5, help="of training of each tokenizer")
    parser.add_argument("--generator-minutes", type=float, default=1.0, help="of training of each generator; 0: none")
    parser.add_argument("--bits", type=int, nargs="+", default=[512], choices=families.BITS)
    parser.add_argument("--families", default=",".join(families.FAMILIES), help="names with commas between them")
    parser.add_argument("--results", type=Path, help=".json of all figures; .md and .svg beside it")
    arguments = parser.parse_args()
    use_compilation_cache()
    asked = {"minutes": arguments.minutes, "generator_minutes": arguments.generator_minutes}
    if once(arguments.out / "asked.json", lambda: asked) != asked:
        raise SystemExit(f"error: {arguments.out} holds a comparison of other minutes: choose another folder")
    training_pictures(arguments.out / "pictures")
    try:
        for bits in arguments.bits:
            for family in arguments.families.split(","):
                contend(arguments.out, family, bits, **asked)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    given = [arguments.out.name if Path(a) == arguments.out else a for a in sys.argv[1:]]
    report(rows(arguments.out), f"python tools/bench/compare_tokenizers.py {' '.join(given)}", arguments.results)


if __name__ == "__main__":
    main()
