"""Tokenizers of all families beside each other, and what a generator makes of the ids of each.

    python tools/bench/compare_tokenizers.py OUT --minutes 2 --generator-minutes 3 --bits 512 --results FIGURES.json

Every family of mmgen/families.py is trained on the same pictures (64 x 64 pixels: the emoji of the training set and as many
crops of photographs, from $MMGEN_DATA or ../shared/data) for the same time, at the same bits a picture. Tested on unseen emoji
and on crops of the Kodak photographs. Then one small next-token model is trained for the same time on the ids of captioned
scenes (shapes with one thing, 64 x 64) and draws scenes of captions that it learned from, and of unseen ones; a program checks
whether they show what the caption says. "readable" are the true test scenes that it still reads right when they were encoded
and decoded: drawings can hardly do better.

Time is that of training steps, without compilation: a few steps are timed first, which says how many fit. Each stage leaves
its figures in OUT; killed and started again, the script goes on where it was. Two of them may work on different --families in
the same OUT, each pinned to half of the cores, or on different --bits one after the other: each writes the table of all that is
there. --generator-minutes 0: tokenizers only.
"""

import argparse
import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
from common import Stages, report, run, seconds_of, train_for, write
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.files import read_json, temporary_beside, write_atomically
from mmgen_tokenizers.image_folder import ImageFolderSource
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.metrics import psnr, ssim
from mmgen_tokenizers.pictures import to_float, to_uint8, write_png
from mmgen_tokenizers.shards import MANIFEST, ShardWriter

from mmgen import families
from mmgen import generator as generators
from mmgen.config import Data, Experiment, GeneratorTask, ImageFolder, Optimizer, Schedule, TokenShards
from mmgen.data.shapes import draw, scene, verify_all
from mmgen.model.config import BlockConfig, GeneratorConfig, Sampling, TextCondition
from mmgen.report import Table, ticks

SIZE = families.SIZE
STAGES = "stages.json"
SCENES = {"train": 4096, "test": 256}  # that the generator learns from, and whose likelihood is measured
DRAWN = 200  # pictures for captions that were learned from, and as many for unseen ones
COUNTED = 1024  # training pictures whose ids say how many of the codes are in use


# Stages --------------------------------------------------------------------------------------------------------------


def contend(out: Path, family: str, bits: int, minutes: float, generator_minutes: float) -> None:
    """All stages of one tokenizer; those that are done are not done again."""
    folder = out / f"{family}-{bits}"
    stages = Stages(folder / STAGES)
    train_for(minutes, tokenizer_experiment(out, family, bits), folder / "tokenizer", stages, "tokenizer")
    tokenizer = mt.load(folder / "tokenizer")
    stages.once("pictures", lambda: picture_figures(out, tokenizer))
    if generator_minutes:
        layout = flat(tokenizer.layout)
        for split in SCENES:
            write_tokens(tokenizer, layout, split, folder / split)
        experiment = generator_experiment(folder, layout)
        trained = train_for(generator_minutes, experiment, folder / "generator", stages, "generator")
        stages.once("scenes", lambda: scene_figures(tokenizer, folder / "generator", trained["validation/loss"]))


def tokenizer_experiment(out: Path, family: str, bits: int) -> Experiment:
    experiment = families.experiment(family, bits)
    data = Data(ImageFolder(str((out / "pictures").absolute())), size=SIZE, flip=True)
    return replace(experiment, data=data, validation=None)


def generator_experiment(folder: Path, layout: TokenLayout) -> Experiment:
    """The same model, whatever the ids.

    So small that a core sees 17,000 scenes in two minutes (results/tokenizers_cpu.json). Eight a step, as there is more need of
    steps than of rows; all with their captions: no guidance.
    """
    block = BlockConfig(width=128, heads=4, mlp=256, qk_norm=True)
    model = GeneratorConfig(layout=layout, condition=TextCondition(vocabulary=128, length=12), block=block, depth=3)
    tokens = {split: Data(TokenShards(str((folder / split).absolute()))) for split in SCENES}
    task = GeneratorTask(model, condition_dropout=0.0, sampling=Sampling(temperature=0.25))
    optimizer = Optimizer(Schedule(peak=2e-3, warmup=100, end=0.02))
    return Experiment(task, tokens["train"], tokens["test"], batch=8, optimizer=optimizer)


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
    try:
        part.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(part)


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
    """Pictures and captions of one thing in one of four places: in three minutes a core learns no more."""
    found = (made for made in (scene(index, split) for index in itertools.count()) if len(made.objects) == 1)
    chosen = list(itertools.islice(found, SCENES[split]))
    return np.stack([draw(made, SIZE) for made in chosen]), [made.caption for made in chosen]


def asked_for(split: str) -> tuple[np.ndarray, list[str]]:
    """DRAWN captions, each of the split as often as any other, and a picture that each is true of."""
    each = dict(zip(*reversed(scenes(split)), strict=True))
    chosen = list(itertools.islice(itertools.cycle(each), DRAWN))
    return np.stack([each[caption] for caption in chosen]), chosen


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


def scene_figures(tokenizer: mt.Tokenizer, folder: Path, nats: float) -> dict[str, float]:
    """What the generator has learned: bits that it needs for a scene (`nats` an id), and how many of those that it draws show
    what was asked."""
    layout, gen = tokenizer.layout, generators.load(folder)
    found = {"bits_needed": nats * layout.sites * layout.groups / math.log(2)}
    for name, split in (("learned", "train"), ("unseen", "test")):
        originals, captions = asked_for(split)
        ids = {"readable": tokenizer.encode(originals), "verified": gen.generate(prompts=captions).tokens}
        for what, each in ids.items():
            found[f"{what}_{name}"] = share_right(captions, tokenizer.decode(each))
    return found


def share_right(captions: list[str], pictures: np.ndarray) -> float:
    """Share of the pictures that show the thing, size and place that the caption says, and nothing else."""
    return float(np.mean([verdict.places_right for verdict in verify_all(captions, to_uint8(pictures))]))


# Table and plot ------------------------------------------------------------------------------------------------------


def rows(out: Path) -> list[dict]:
    """The figures of all tokenizers that are done, in the order of bits and families."""
    found = []
    for bits, family in itertools.product(families.BITS, families.FAMILIES):
        folder = out / f"{family}-{bits}"
        done = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
        if "pictures" in done:
            found.append({"family": family} | done["pictures"] | done.get("scenes", {}) | trainings(folder, done))
    return found


def trainings(folder: Path, done: dict) -> dict[str, dict[str, float]]:
    """What it took: {"tokenizer": steps, pictures, seconds, cores; "generator": the same}."""
    took = {name: done[f"{name}: training"] for name in ("tokenizer", "generator") if f"{name}: training" in done}
    kept = ("steps", "pictures", "cores")
    return {n: {k: f[k] for k in kept} | {"seconds": seconds_of(folder / n)} for n, f in took.items()}


COLUMNS: dict[str, Callable[[dict], str]] = {
    "family": lambda row: row["family"],
    "bits": lambda row: f"{row['bits']:.0f}",
    "ids x codes": lambda row: " x ".join(str(n) for n in (row["sites"], row["groups"], row["codes"]) if n > 1),
    "PSNR emoji": lambda row: f"{row['psnr_emoji']:.2f}",
    "PSNR Kodak": lambda row: f"{row['psnr_kodak']:.2f}",
    "SSIM emoji": lambda row: f"{row['ssim_emoji']:.3f}",
    "SSIM Kodak": lambda row: f"{row['ssim_kodak']:.3f}",
    "usage": lambda row: f"{row['usage']:.1%}",
    "bits a scene": lambda row: f"{row['bits_needed']:.0f}",
    "readable": lambda row: f"{row['readable_unseen']:.1%}",
    "learned captions verified": lambda row: f"{row['verified_learned']:.1%}",
    "unseen": lambda row: f"{row['verified_unseen']:.1%}",
}


def table(found: list[dict]) -> str:
    """Markdown; "-" for what was not measured."""

    def cell(show: Callable, row: dict) -> str:
        try:
            return show(row)
        except KeyError:
            return "-"

    return Table("", list(COLUMNS), [[cell(show, row) for show in COLUMNS.values()] for row in found]).markdown + "\n"


def prefix_table(found: list[dict]) -> str:
    """Markdown: PSNR of all test pictures when the first ids alone are decoded, of tokenizers that can."""
    rows = []
    for row in found:
        values = [f"{count}: {value:.2f}" for count, value in row.get("psnr_of_first", {}).items()]
        rows += [[row["family"], f"{row['bits']:.0f}", ", ".join(values)]] if values else []
    return Table("", ["family", "bits", "ids decoded: PSNR"], rows).markdown + "\n" if rows else ""


WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 60, 50, 30, 110  # of the plot, in its own units
HALO = 'paint-order="stroke" stroke="white" stroke-width="3"'  # so that names can be read on discs
LINE, LONGEST = 14, 105  # height of a name in it, and width


def plot(found: list[dict]) -> str:
    """SVG: across what the tokenizer keeps of pictures, upwards what the generator gets right; discs grow with the bits."""
    points = [((row["psnr_emoji"] + row["psnr_kodak"]) / 2, 100 * row["verified_learned"], row) for row in found]
    points.sort(key=lambda point: point[1])
    xs, ys = ticks(min(p[0] for p in points), max(p[0] for p in points)), ticks(0, points[-1][1])

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - xs[0]) / (xs[-1] - xs[0]), y / ys[-1]
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    parts, names, words = axes(xs, ys, place), [], []
    for x, y, row in points:
        (across, up), radius = place(x, y), math.sqrt(row["bits"]) / 4
        parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius:.1f}" fill="#2a6fd6" fill-opacity="0.6"/>')
        names.append(free_place(across + radius + 4, up + 4, names))
        words.append('<text x="{:.1f}" y="{:.1f}" {}>{} {:.0f}</text>'.format(*names[-1], HALO, row["family"], row["bits"]))
    body = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>' + "".join(parts + words)
    style = 'font-family="sans-serif" font-size="13" fill="#17181c"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>{body}</svg>\n'


def free_place(x: float, y: float, names: list[tuple[float, float]]) -> tuple[float, float]:
    """Where a name can stand that would stand at x, y: there, or above those that are in its way."""
    while any(abs(x - there) < LONGEST and abs(y - up) < LINE for there, up in names):
        y -= 1
    return x, y


def axes(xs: list[float], ys: list[float], place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    """Grid lines, numbers and titles."""
    parts = [
        f'<text x="{LEFT}" y="{HEIGHT - 10}">PSNR of reconstructed emoji and photographs, dB (mean of both)</text>',
        f'<text x="{LEFT}" y="16">drawn scenes that show what the learned caption says, %</text>',
    ]
    for x in xs:
        parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    for y in ys:
        up = place(xs[0], y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up:.1f}" y2="{up:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{up + 4:.1f}" text-anchor="end">{y:g}</text>')
    return parts


def write_all(found: list[dict], path: Path | None) -> None:
    """The figures on the terminal; with `path` (.json) they go there, and the table (.md) and the plot (.svg) beside it."""
    what = "tokenizers of all families, trained alike; then one generator, trained alike on the ids of each"
    write(report(what, found), path)
    tables = "\n".join(filter(None, [table(found), prefix_table(found)]))
    print(tables)
    if path:
        write_atomically(path.with_suffix(".md"), tables.encode())
        if drawn := [row for row in found if "verified_learned" in row]:
            write_atomically(path.with_suffix(".svg"), plot(drawn).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where runs and figures are kept")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training of each tokenizer")
    parser.add_argument("--generator-minutes", type=float, default=3.0, help="of training of each generator; 0: none")
    parser.add_argument("--bits", type=int, nargs="+", default=[512], choices=families.BITS)
    parser.add_argument("--families", default=",".join(families.FAMILIES), help="names with commas between them")
    parser.add_argument("--results", type=Path, help=".json of all figures; .md and .svg beside it")
    arguments = parser.parse_args()
    use_compilation_cache()
    out, minutes, generator_minutes = arguments.out, arguments.minutes, arguments.generator_minutes
    chosen = arguments.families.split(",")
    for family in chosen:
        families.model(family)  # a misspelt name is told before hours of work on the others
    Stages(out / STAGES).settle({"minutes": minutes})
    if generator_minutes:
        Stages(out / "generators.json").settle({"generator_minutes": generator_minutes})
    training_pictures(out / "pictures")
    for bits, family in itertools.product(arguments.bits, chosen):
        contend(out, family, bits, minutes, generator_minutes)
    write_all(rows(out), arguments.results)


if __name__ == "__main__":
    run(main)
