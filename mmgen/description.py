"""What a folder holds, in words: a run, an exported or converted model, token shards; and the fields of an experiment."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import jax
from mmgen_tokenizers.api import FAMILIES, family_of, shapes
from mmgen_tokenizers.configs import dataclass_members, field_types, from_json, literals, to_json
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import read_json

from mmgen import config
from mmgen.decoding.autoregressive import schedule
from mmgen.folders import find, is_generator
from mmgen.generator import Exported
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, GeneratorConfig, Masked, RandomOrder, Sampling, TextCondition
from mmgen.model.masking import hidden_share
from mmgen.plan.drawing import drawing
from mmgen.training.exports import STEP
from mmgen.training.metrics import read_metrics

NAMES = 8  # of classes that are shown


def describe(path: str | Path, everything: bool = False) -> str:
    """What a folder or an experiment's .py holds; `everything`: with all fields. Raises UserError where it is none of them."""
    path = Path(path)
    if path.suffix == ".py":
        return describe_experiment(path)
    if (path / "manifest.json").is_file():
        return _page(f"{path}: token shards", {k: v for k, v in read_json(path / "manifest.json").items() if k != "files"})
    if (path / "experiment.json").is_file():
        return describe_run(path, everything)
    return describe_model(path, everything)


def describe_experiment(path: Path) -> str:
    """Every field that `mmgen train` can set, with its value and what else it may be."""
    experiment = config.load_experiment(path)
    others = dict(_choices(experiment))
    fields = "\n".join(
        f"  --{name} {_text(value)}" + (f"   ({', '.join(others[name])})" if others.get(name) else "")
        for name, value in _leaves(to_json(experiment))
    )
    return f"{path}: an experiment; mmgen train {path} sets its fields by\n{fields}"


def _choices(value: Any, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Names of the fields below a configuration that take one of a few values, and the kinds of those in a union."""
    for name, hint in field_types(type(value)).items():
        kinds = list(dataclass_members(hint))
        yield (f"{prefix}{name}.kind", kinds) if len(kinds) > 1 else (prefix + name, literals(hint))
        if is_dataclass(getattr(value, name)):
            yield from _choices(getattr(value, name), f"{prefix}{name}.")


def describe_run(folder: Path, everything: bool) -> str:
    """How far it is and, once there is an export, its model; with `everything` the fields of its experiment and all figures."""
    experiment = read_json(folder / "experiment.json")
    kind = "tokenizer" if experiment["task"].get("kind", "TokenizerTask") == "TokenizerTask" else "generator"
    entries = read_metrics(folder)
    page = _aligned(f"{folder}: a run of a {kind}", _progress(experiment, entries))
    if everything:
        figures = {name: value for entry in entries for name, value in entry.items()}
        page = "\n".join([page, _page("experiment", experiment), _page("last figures", figures)])
    if (folder / "export" / "config.json").is_file():
        return f"{page}\n{describe_model(folder, everything)}"
    return f"{page}\nno export/ yet: it is written at the first checkpoint"


def _progress(experiment: dict[str, Any], entries: list[dict]) -> dict[str, str]:
    """The data, how far the run is, its last loss and its last validation."""
    trained = next((entry for entry in reversed(entries) if "loss" in entry), {"step": 0})
    lines = {"data": _words(experiment["data"]["source"]), "step": f"{trained['step']} of {experiment['steps']}"}
    if "loss" in trained:
        lines["loss"] = f"{trained['loss']:.4g}"
    validated = next((entry for entry in reversed(entries) if "validation/loss" in entry), None)
    if validated is not None:
        figures = {name.partition("/")[2]: value for name, value in validated.items() if name.startswith("validation/")}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        lines["validation"] = f"{shown} (step {validated['step']})"
    return lines


def describe_model(folder: Path, everything: bool) -> str:
    """An exported model, its tokenizer, what commands take it; with `everything` its config.json."""
    place, about = find(folder)
    if not is_generator(about):
        return "\n".join([_tokenizer(place, about), _use(folder, about), *_fields(place, everything)])
    inner = place / "tokenizer"
    alone = f"{inner} is missing: it draws ids, not pictures"
    tokenizer = _tokenizer(inner, read_json(inner / "config.json")) if inner.is_dir() else alone
    plan = describe_plan(from_json(GeneratorConfig, about["model"]))
    pages = [_generator(place, about), tokenizer, _use(folder, about), plan, *_fields(place, everything)]
    return "\n".join(pages + _fields(inner, everything and inner.is_dir()))


def _fields(place: Path, wanted: bool) -> list[str]:
    path = place / "config.json"
    return [_page(str(path), read_json(path))] if wanted else []


def _generator(place: Path, about: dict[str, Any]) -> str:
    exported = from_json(Exported, {name: about[name] for name in ("model", "sampling", "weights", "labels") if name in about})
    c, sampling = exported.model, vars(exported.sampling)
    count = _count(jax.eval_shape(lambda: transformer.init(c, jax.random.key(0))))
    chosen = {name: value for name, value in sampling.items() if value != getattr(Sampling(), name)}
    lines = {
        "draws": f"{c.layout}, {type(c.plan).__name__}",
        "from": _condition(c.condition, exported.labels),
        "network": f"{count} parameters: {c.layers} layers of width {c.block.width}, {c.block.heads} heads",
        "sampling": ", ".join(f"{name} {_text(value)}" for name, value in chosen.items()) or "no guidance, all tokens",
        "weights": f"{_weights(place)}, {exported.weights}",
    }
    return _aligned(f"{place}: a generator", lines)


def _condition(condition: object, labels: tuple[str, ...] | None) -> str:
    if isinstance(condition, ClassCondition):
        names = f": {', '.join(labels[:NAMES])}{', ...' if len(labels) > NAMES else ''}" if labels else ""
        return f"labels of {condition.classes} classes{names}"
    if isinstance(condition, TextCondition):
        return f"prompts of up to {condition.length} tokens"
    return f"features [{condition.length}, {condition.width}] of a text model"


def _tokenizer(place: Path, about: dict[str, Any]) -> str:
    if about.get("family") not in FAMILIES:
        raise UserError(f"{place}/config.json is not one of ours: convert what it belongs to (mmgen convert --help)")
    c = from_json(FAMILIES[about["family"]][0], about["config"])
    layout = family_of(c)[1].layout(c, c.image_size, c.image_size)
    quantizer = f" with {type(c.quantizer).__name__}" if hasattr(c, "quantizer") else ""
    lines = {
        "turns": f"{c.image_size} x {c.image_size} pixels into {layout}",
        "network": f"{about['family']}{quantizer}, {_count(shapes(c))} parameters",
        "weights": f"{_weights(place)}, {about['source'] or 'trained here'}",
    }
    return _aligned(f"{place}: a tokenizer", lines)


def _weights(place: Path) -> str:
    size = sum(file.stat().st_size for file in place.glob("model*.safetensors"))
    step = f" of step {read_json(place / STEP)['step']}" if (place / STEP).is_file() else ""
    return f"{size / 1e6:.1f} MB{step}"


def _use(folder: Path, about: dict[str, Any]) -> str:
    """The commands that take the folder."""
    if not is_generator(about):
        first = {"try it": f"mmgen-tokenizers reconstruct PICTURES --tokenizer {folder} --out grid.png"}
    else:
        condition = from_json(GeneratorConfig, about["model"]).condition
        words = {ClassCondition: "--label 0", TextCondition: "--prompt 'a red bird'"}.get(type(condition))
        command = f"mmgen sample {folder} {words} -n 4" if words else f"mmgen.load({str(folder)!r}).generate(features=...)"
        first = {"draw": command}
    return _aligned("commands", first | {"all fields": f"mmgen info {folder} --all"})


def describe_plan(c: GeneratorConfig) -> str:
    """The order in which a generator predicts, drawn, and what it costs."""
    plan = c.plan.build(c.layout, c.condition.slots)
    if isinstance(c.plan, Masked):
        holes = " ".join(f"{float(hidden_share(c.plan, t / c.plan.steps)):.2f}" for t in range(c.plan.steps))
        numbers = {"slots": plan.slots, "sites": plan.sites, "steps": c.plan.steps}
        return f"{_page('order of prediction', numbers)}\n  step -> share of the tokens that it finds hidden\n  {holes}"
    computed = sum(segment.width * (segment.stop - segment.start) for segment in schedule(plan))
    padding = f"{computed / plan.slots - 1:.1%} of the slots"
    numbers = {"slots": plan.slots, "sites": plan.sites, "steps": plan.times, "padding": padding}
    lines = [f"  {line}" for line in drawing(plan, c.layout)]
    training = " (in training each sample has an order of its own)" if isinstance(c.plan, RandomOrder) else ""
    return "\n".join([_page("order of prediction", numbers), f"  site -> step{training}", *lines])


def _count(tree: Any) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f}M"


def _words(node: dict[str, Any]) -> str:
    """A member of a union in JSON: its kind and what it says."""
    return f"{node.get('kind', '')} ({', '.join(f'{name} {_text(value)}' for name, value in node.items() if name != 'kind')})"


def _aligned(title: str, lines: dict[str, str]) -> str:
    return "\n".join([title, *(f"  {name:<12}{value}" for name, value in lines.items())])


def _page(title: str, tree: dict[str, Any]) -> str:
    return "\n".join([title, *(f"  {name}  {_text(value)}" for name, value in _leaves(tree))])


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: Any) -> str:
    """As the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value[:20])) + (",..." if len(value) > 20 else "") or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
