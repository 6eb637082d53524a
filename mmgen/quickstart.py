"""The whole path in about ten minutes on two CPU cores: scenes, tokenizer, token shards, generator, pictures from prompts.

OUT/ tokenizer/ and generator/ (run folders)  tokens/ (shards)  report.html  figures.json  seconds.json
"""

import time
from dataclasses import dataclass
from pathlib import Path

import mmgen_tokenizers as mt
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.files import read_json, write_json
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.losses import TokenizerLosses
from mmgen_tokenizers.networks.cnn import CNN
from mmgen_tokenizers.quantizers.vq import VQ
from mmgen_tokenizers.shards import MANIFEST

from mmgen import generator as generators
from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, Shapes, TokenizerTask, TokenShards
from mmgen.data.tokenize import tokenize
from mmgen.evaluation import shapes as evaluation
from mmgen.evaluation.curves import charts
from mmgen.model.config import BlockConfig, GeneratorConfig, Sampling, TextCondition
from mmgen.report import write_report
from mmgen.training.loop import train

UNSEEN = Data(Shapes("test", 1024))
CODES = 1024
TARGETS = evaluation.TARGETS | {"seconds": 15 * 60.0}
ABOUT = (
    "A tokenizer that turns a picture into 16 integers, and a transformer that predicts them from a caption, both trained "
    "by this machine on scenes drawn on the fly. No prompt below says what a caption of the training said."
)


@dataclass(frozen=True)
class Sizes:
    """How much is done. `scale` thins the networks."""

    tokenizer_steps: int = 1100
    generator_steps: int = 1500
    pictures: int = 50_000  # tokenized
    prompts: int = 256
    scale: int = 1


SMOKE = Sizes(tokenizer_steps=20, generator_steps=20, pictures=512, prompts=16, scale=4)


def tokenizer(sizes: Sizes = Sizes()) -> Experiment:
    """32 x 32 pixels -> 4 x 4 ids: a token is a quarter of a cell of the scene.

    Patches of 8 x 8 pixels become channels first, so that all convolutions run on 4 x 4 positions, where a CPU is fast.
    """
    network = CNN(
        channels=128 // sizes.scale,
        multipliers=(1,),
        encoder_blocks=1,
        decoder_blocks=1,
        attention_levels=(),
        middle_attention=False,
        latent=8,
        groups=16,
        stem=8,
    )
    return Experiment(
        task=TokenizerTask(
            model=VQGAN(network, VQ(size=CODES, dim=8), image_size=32, quant_conv=0),
            losses=TokenizerLosses(l2=5.0),
            revive_after=100,
        ),
        data=Data(Shapes()),
        validation=UNSEEN,
        steps=sizes.tokenizer_steps,
        batch=64,
        optimizer=Optimizer(Schedule(peak=2e-3, warmup=min(50, sizes.tokenizer_steps // 10), end=0.02), weight_decay=1e-4),
        every_checkpoint=500,
    )


def generator(out: Path, sizes: Sizes = Sizes()) -> Experiment:
    """A caption of at most 18 words -> 16 ids, learned from token shards."""
    model = GeneratorConfig(
        layout=TokenLayout(height=4, width=4, codebook_size=CODES),
        condition=TextCondition(vocabulary=128, length=20),
        block=BlockConfig(width=192 // sizes.scale, heads=3, mlp=512 // sizes.scale, qk_norm=True),
        depth=4,
    )
    return Experiment(
        task=GeneratorTask(
            model, tokenizer=str(out / "tokenizer"), condition_dropout=0.1, sampling=Sampling(guidance=1.25, temperature=0.5)
        ),
        data=Data(TokenShards(str(out / "tokens"))),
        validation=UNSEEN,
        steps=sizes.generator_steps,
        batch=32,
        optimizer=Optimizer(Schedule(peak=2e-3, warmup=min(100, sizes.generator_steps // 10), end=0.02)),
        every_checkpoint=500,
    )


def run(out: str | Path, sizes: Sizes = Sizes()) -> dict[str, float | int]:
    """Does all of it in `out` and returns the figures. Stopped or killed, it continues where it was when called again."""
    out = Path(out)
    clock = Clock(out / "seconds.json")
    print("1/4  training the tokenizer: pictures <-> 16 integers")
    clock.note("tokenizer", train(tokenizer(sizes), out / "tokenizer").metrics["seconds"])
    print("2/4  turning pictures into tokens")
    if not (out / "tokens" / MANIFEST).is_file():  # written last
        tokenize(out / "tokenizer", "shapes", out / "tokens", count=sizes.pictures)
        clock.note("tokens")
    print("3/4  training the generator: caption -> integers")
    clock.note("generator", train(generator(out, sizes), out / "generator").metrics["seconds"])
    print(f"4/4  drawing {sizes.prompts} unseen combinations")
    restored = evaluation.reconstructions(mt.load(out / "tokenizer"), max(64, 4 * sizes.prompts))
    drawn = evaluation.samples(generators.load(out / "generator"), sizes.prompts)
    clock.note("drawing")
    figures = evaluation.figures(restored, drawn) | {"seconds": round(clock.total, 1)}
    write_report(
        out / "report.html",
        "mmgen quickstart",
        evaluation.table(figures, TARGETS),
        charts(out / "tokenizer", out / "generator"),
        evaluation.galleries(restored, drawn),
        ABOUT,
    )
    write_json(out / "figures.json", figures)
    return figures


class Clock:
    """Seconds of each stage, in a file, so that a job that was stopped and continued tells the time of both parts."""

    def __init__(self, path: Path):
        self._path = path
        self._seconds: dict[str, float] = read_json(path) if path.is_file() else {}
        self._since = time.monotonic()

    def note(self, stage: str, trained: float = 0.0) -> None:
        """A stage has ended that took the time since the last one; `trained` is what a run knows of earlier starts."""
        now = time.monotonic()
        self._seconds[stage] = max(self._seconds.get(stage, 0.0), now - self._since, trained)
        self._since = now
        write_json(self._path, self._seconds)

    @property
    def total(self) -> float:
        return sum(self._seconds.values())
