"""Five orders of prediction, like for like: the same pictures, parameters (about 2M) and training time.

    python tools/bench/compare_plans.py --minutes 10 --out tools/bench/results/compare_plans_cpu

Next token, next neighbor, next scale, random order and masked learn `shapes` (captions) and Fashion-MNIST (classes; where it
lies experiments/fashion_mnist says). All read the codes of one tokenizer, but next scale, which needs one of several scales: it
is trained as long. Pictures become token shards first: encoding is in nobody's budget, and neither is compiling. How many steps
fit in a budget is measured before the run.

Guidance and temperature are chosen for each model among SETTINGS by pictures that are not counted. Right is a picture of a
class that a CNN, trained on the real pictures, recognises; and a scene in which the checker finds every object, size and place
as the unseen caption says; test pictures that were encoded and decoded are judged, too. Nats a picture are those of the exact
likelihood of a test picture's ids; next scale has other ids, masked prediction has no likelihood. Seconds a picture include
the tokenizer's decoder.

--runs DIR holds the run folders and report.html, a page of pictures. Stopped or killed, the same command continues.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import mmgen_tokenizers as mt
import numpy as np
from common import Stages, best_of, matmul_rate, report, run, train_for, write
from mmgen_tokenizers.api import family_of
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.pictures import to_uint8
from mmgen_tokenizers.shards import MANIFEST

import mmgen
from mmgen import config, quickstart
from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, TokenShards
from mmgen.data import batches
from mmgen.data.tokenize import tokenize
from mmgen.evaluation import classifier, shapes
from mmgen.evaluation.curves import curve
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import (
    BlockConfig,
    ClassCondition,
    GeneratorConfig,
    Masked,
    NextNeighbor,
    NextScale,
    NextToken,
    RandomOrder,
    TextCondition,
)
from mmgen.report import Card, Chart, Figure, Gallery, Table, write_report

ORDERS = ("next token", "next neighbor", "next scale", "random order", "masked")
EXACT = ("next token", "next neighbor", "random order")  # likelihoods of the same ids
LAYERS, BLOCK = 4, BlockConfig(width=192, heads=3, mlp=512, qk_norm=True)  # as experiments/shapes: a CPU can teach it
SETTINGS = [{"guidance": g, "temperature": t} for g in (1.5, 3.0) for t in (0.6, 1.0)]
TOGETHER = 64  # pictures drawn at once
BATCH = 32


@dataclass(frozen=True)
class Subject:
    """What is learned: how its tokenizer is trained, and what `mmgen tokenize` reads."""

    folder: str
    title: str
    single: Callable[[], Experiment]
    train: str
    test: str
    condition: ClassCondition | TextCondition
    scales: mt.MultiScaleVQ
    crops: str = "center"  # "random:K": mirrored too

    def tokenizer(self, several: bool) -> Experiment:
        """The experiment of its tokenizer; of one with several scales, else the same."""
        chosen = self.single()
        if not several:
            return chosen
        model = chosen.task.model
        codes = replace(self.scales, size=model.quantizer.size, dim=model.quantizer.dim)
        network = {name: getattr(model, name) for name in ("network", "image_size", "quant_conv")}
        return replace(chosen, task=replace(chosen.task, model=mt.MultiScale(quantizer=codes, **network)))


def fashion_mnist() -> Experiment:
    return config.load_experiment(Path(__file__).parents[2] / "experiments/fashion_mnist/tokenizer.py")


# Of VAR's kind, which quantize what the coarser ones leave over; and of FlexVAR's, which quantize the picture itself: a plain
# background is one code there, and would be another one at each place if it made up for what the coarser scales have wrong.
RESIDUAL = mt.MultiScaleVQ(scales=(1, 2, 4, 8), phis=2)
WHOLE = mt.MultiScaleVQ(scales=(1, 2, 4), normalize=True, residual=False, phis=0)
SUBJECTS = {
    subject.folder: subject
    for subject in (
        Subject("shapes", "Scenes", quickstart.tokenizer, "shapes", "shapes:test", TextCondition(128, 20), WHOLE),
        Subject(
            "fashion_mnist", "Fashion-MNIST", fashion_mnist, "tfds:fashion_mnist", "tfds:fashion_mnist:test",
            ClassCondition(10), RESIDUAL, crops="random:2",
        ),
    )
}  # fmt: skip


# What is trained ------------------------------------------------------------------------------------------------------


def model(subject: Subject, order: str) -> GeneratorConfig:
    """The same number of layers for all."""
    tokenizer = subject.tokenizer(order == "next scale").task.model
    plan = {
        "next token": NextToken(),
        "next neighbor": NextNeighbor(),
        "next scale": NextScale(tokenizer.quantizer),
        "random order": RandomOrder(),
        "masked": Masked(steps=8),
    }[order]
    layout = family_of(tokenizer)[1].layout(tokenizer, tokenizer.image_size, tokenizer.image_size)
    return GeneratorConfig(plan, layout, subject.condition, BLOCK, depth=LAYERS - max(plan.taps(0)))


def parameters(c: GeneratorConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))))


def generator(subject: Subject, order: str, home: Path) -> Experiment:
    tokenizer = tokenizer_folder(order == "next scale")
    train, test = (Data(TokenShards(str(home / f"{tokenizer}_{split}"))) for split in ("train", "test"))
    task = GeneratorTask(model(subject, order), tokenizer=str(home / tokenizer))
    return Experiment(task, train, test, batch=BATCH, optimizer=Optimizer(Schedule(peak=1.5e-3, warmup=100, end=0.02)))


def tokenizer_folder(several: bool) -> str:
    return "tokenizer_scales" if several else "tokenizer"


# How it is judged -----------------------------------------------------------------------------------------------------


class Scenes:
    """Judges scenes by the checker."""

    def draw(self, gen: Generator, part: int, **settings) -> list[Card]:
        """TOGETHER pictures, judged; another part has other captions."""
        return shapes.cards(shapes.samples(gen, TOGETHER, first=TOGETHER * part, **settings))

    def restored(self, tokenizer: mt.Tokenizer, count: int) -> float:
        """The share of test pictures that are right when they were encoded and decoded: no drawing can be better."""
        return shapes.reconstructions(tokenizer, count).places_right


@dataclass(frozen=True)
class Classes:
    """Judges pictures by a classifier."""

    subject: Subject

    @functools.cached_property
    def classify(self) -> classifier.Classifier:
        data = self.subject.tokenizer(False).data
        return classifier.train_classifier(batches(data, 64, seed=1), self.subject.condition.classes, data.size)

    def draw(self, gen: Generator, part: int, **settings) -> list[Card]:
        """TOGETHER pictures, judged; another part has another seed."""
        return classifier.cards(*classifier.recognised(gen, self.classify, TOGETHER, seed=part, **settings), gen.labels)

    def restored(self, tokenizer: mt.Tokenizer, count: int) -> float:
        test = next(batches(self.subject.tokenizer(False).validation, count, repeat=False))
        pictures = to_uint8(tokenizer.decode(tokenizer.encode(test["image"])))
        return float(np.mean(self.classify(pictures) == test["label"]))


def share(cards: Sequence[Card]) -> float:
    return float(np.mean([card.good for card in cards]))


def evaluate(judge: Scenes | Classes, folder: Path, samples: int) -> dict[str, Any]:
    """Figures of a trained generator; its pictures go to FOLDER/samples.npz."""
    gen, parts = mmgen.load(folder), -(-samples // TOGETHER)
    tried = [share(judge.draw(gen, parts, **chosen) + judge.draw(gen, parts + 1, **chosen)) for chosen in SETTINGS]
    chosen = SETTINGS[int(np.argmax(tried))]
    cards = [card for part in range(parts) for card in judge.draw(gen, part, **chosen)]
    pictures = np.stack([card.pictures[0] for card in cards])
    texts, notes = ([getattr(card, name) for card in cards] for name in ("text", "note"))
    np.savez_compressed(folder / "samples.npz", pictures=pictures, texts=texts, notes=notes, good=[c.good for c in cards])
    given = {"labels": np.arange(TOGETHER) % 10} if gen.text is None else {"prompts": texts[:TOGETHER]}
    one = {name: rows[:1] for name, rows in given.items()}
    return {
        "samples": len(cards),
        "right": share(cards),
        **chosen,
        "tried": tried,
        "forwards": gen.generate(**one, **chosen).forwards,
        "seconds_batch_1": best_of(lambda: gen.generate(**one, **chosen), 5),
        "seconds_batch_64": best_of(lambda: gen.generate(**given, **chosen), 2) / TOGETHER,
    }


def likelihood(subject: Subject, order: str, trained: dict[str, float]) -> float | None:
    """Nats a test picture, where its ids are those of all."""
    return trained["validation/loss"] * model(subject, order).layout.sites if order in EXACT else None


# All of it ------------------------------------------------------------------------------------------------------------


def compare(subject: Subject, args: argparse.Namespace, stages: Stages) -> dict[str, dict[str, Any]]:
    """Figures of each order."""
    home, found, restored = args.runs / subject.folder, {}, {}
    judge = Scenes() if isinstance(subject.condition, TextCondition) else Classes(subject)
    for several in sorted({order == "next scale" for order in args.orders}):
        name = tokenizer_folder(several)
        title = f"{subject.folder} {name}"
        train_for(args.tokenizer_minutes, subject.tokenizer(several), home / name, stages, title)
        again = functools.partial(lambda name: judge.restored(mt.load(home / name), args.samples), name)
        restored[several] = stages.once(f"{title}: judged", again)
        for split in ("train", "test"):
            encode(subject, home, name, split, args.pictures)
    for order in args.orders:
        name, folder = f"{subject.folder} {order}", home / order.replace(" ", "_")
        trained = train_for(args.minutes, generator(subject, order, home), folder, stages, name)
        judged = stages.once(f"{name}: judged", lambda folder=folder: evaluate(judge, folder, args.samples))
        own = {"parameters": parameters(model(subject, order)), "sites": model(subject, order).layout.sites}
        seen = {key: trained[key] for key in ("steps", "pictures", "seconds")}
        known = {"nats_a_picture": likelihood(subject, order, trained), "restored_right": restored[order == "next scale"]}
        found[order] = own | seen | known | judged
        print(f"{name}: {found[order]}", flush=True)
    return found


def encode(subject: Subject, home: Path, name: str, split: str, pictures: int) -> None:
    """Token shards of the pictures to learn from, or of 2,048 to validate with."""
    out, source = home / f"{name}_{split}", subject.tokenizer(False).data.source
    if (out / MANIFEST).is_file():  # written last
        return
    crops = {"crops": subject.crops, "flip": subject.crops != "center"} if split == "train" else {}
    count = pictures if split == "train" else 2048
    tokenize(home / name, getattr(subject, split), out, count=count, data_dir=getattr(source, "data_dir", None), **crops)


def table(subject: Subject, found: dict[str, dict[str, Any]]) -> Table:
    columns = ("", "right", "reconstructions right", "nats a picture", "forwards", "s a picture, batch 1", "batch 64",
               "pictures learned from", "training s", "parameters", "guidance", "temperature")  # fmt: skip
    rows = [
        [
            order,
            f"{100 * f['right']:.1f}%",
            f"{100 * f['restored_right']:.1f}%",
            f"{f['nats_a_picture']:.1f}" if f["nats_a_picture"] else "",
            str(f["forwards"]),
            f"{f['seconds_batch_1']:.4f}",
            f"{f['seconds_batch_64']:.4f}",
            f"{f['pictures']:,}",
            f"{f['seconds']:.0f}",
            f"{f['parameters'] / 1e6:.2f}M",
            str(f["guidance"]),
            str(f["temperature"]),
        ]
        for order, f in found.items()
    ]
    return Table(subject.title, columns, rows)


def verdicts(subject: Subject, found: dict[str, dict[str, Any]]) -> list[Figure]:
    """What next-neighbor and next-scale prediction should reach, beside next-token's."""
    first = found.get("next token")
    rows = []
    for order in ("next neighbor", "next scale"):
        if first and order in found:
            name, own = f"{subject.title}, {order}", found[order]
            rows.append(Figure(f"{name}: right", own["right"], first["right"] - 0.05, "%"))
            rows.append(Figure(f"{name}: forwards", own["forwards"], first["forwards"] / 4, less=True))
    return rows


def gallery(subject: Subject, order: str, runs: Path) -> Gallery:
    with np.load(runs / subject.folder / order.replace(" ", "_") / "samples.npz") as file:
        rows = [file[name][:30] for name in ("pictures", "texts", "good", "notes")]
    cards = [Card([picture], str(text), bool(good), str(note)) for picture, text, good, note in zip(*rows, strict=True)]
    return Gallery(f"{subject.title}: {order}", cards, "The first ones, not the best.", shown=72)


def page(args: argparse.Namespace, found: dict[str, dict], tables: list[Table]) -> None:
    subjects = [SUBJECTS[name] for name in found]
    charts = [
        Chart(f"{s.title}: loss in nats a token", {
            order: curve(args.runs / s.folder / order.replace(" ", "_"), "loss") for order in EXACT if order in found[s.folder]
        })
        for s in subjects
    ]  # fmt: skip
    galleries = [gallery(s, order, args.runs) for s in subjects for order in found[s.folder]]
    goals = [row for s in subjects for row in verdicts(s, found[s.folder])]
    about = (
        f"The same pictures, about 2M parameters and {args.minutes:g} minutes of training for each. All read the ids "
        "of one tokenizer but next scale, which has one of several scales, trained as long."
    )
    write_report(args.runs / "report.html", "Orders of prediction", goals, charts, galleries, about, tables)
    print(args.runs / "report.html")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each generator")
    parser.add_argument("--tokenizer-minutes", type=float, default=4.0, help="training time of each tokenizer")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), choices=ORDERS)
    parser.add_argument("--samples", type=int, default=512, help="pictures judged of each")
    parser.add_argument("--pictures", type=int, default=30_000, help="to learn from")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare_plans"))
    parser.add_argument("--out", type=Path, help="where the table goes: OUT.json and OUT.md")
    return parser.parse_args()


def main() -> None:
    args = parse()
    use_compilation_cache()
    stages = Stages(args.runs / "stages.json")
    given = {name: getattr(args, name) for name in ("minutes", "tokenizer_minutes", "samples", "pictures")}
    stages.settle(given)
    found = {name: compare(SUBJECTS[name], args, stages) for name in args.subjects}
    tables = [table(SUBJECTS[name], figures) for name, figures in found.items()]
    page(args, found, tables)
    what = f"orders of prediction, {args.minutes:g} minutes of training each; shares of {args.samples} pictures"
    setup = {"block": asdict(BLOCK), "layers": LAYERS, "matmul_gflops": round(matmul_rate(), 1)}
    write(report(what, found) | setup, args.out and args.out.with_suffix(".json"))
    if args.out:
        args.out.with_suffix(".md").write_text("\n\n".join(f"## {t.title}\n\n{t.markdown}" for t in tables) + "\n")


if __name__ == "__main__":
    run(main)
