"""A report of a run as one HTML file that needs nothing else: figures, curves, pictures. No script, no address outside."""

import base64
import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from mmgen_tokenizers.files import write_atomically
from mmgen_tokenizers.pictures import png_bytes

WIDTH, HEIGHT = 460, 230  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
POINTS = 300  # of a curve, at most
MARKED = 12  # and so few are marked
COLOURS = 6  # of curves: --c0 .. in STYLE; more curves share them
NARROWEST = 104  # pixels of a card: its words need as much


@dataclass(frozen=True)
class Figure:
    """One row of the table. `target`: what it should reach at least (or at most, if `less`)."""

    name: str
    value: float | int | str
    target: float | None = None
    unit: str = ""  # "%" shows shares as percentages
    less: bool = False

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.less else self.value >= self.target

    @property
    def shown(self) -> str:
        return _value(self.value, self.unit)

    @property
    def wanted(self) -> str:
        if self.target is None:
            return ""
        return f"{'at most' if self.less else 'at least'} {_value(self.target, self.unit)}"


def _value(value: float | int | str, unit: str) -> str:
    if isinstance(value, str):
        return value
    if unit == "%":
        return f"{100 * value:.1f}%"
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
    return f"{number} {unit}".strip()


@dataclass(frozen=True)
class Table:
    """Rows of text under the names of columns; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes, by name: (steps, values). `across`: what counts, if it is not steps."""

    title: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    across: str = "step"


@dataclass(frozen=True)
class Card:
    """Pictures side by side with a line below; `good` marks it right or wrong, `note` says why."""

    pictures: Sequence[UInt8[np.ndarray, "H W 3"]]
    text: str = ""
    good: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    title: str
    cards: Sequence[Card]
    about: str = ""
    shown: int = 128  # pixels a side on the page; a card is not narrower than its words need


def write_report(
    path: str | Path,
    title: str,
    figures: Sequence[Figure],
    charts: Sequence[Chart],
    galleries: Sequence[Gallery],
    about: str = "",
    tables: Sequence[Table] = (),
) -> None:
    """Writes the page at `path`, whole or not at all."""
    body = [
        f"<header><h1>{_text(title)}</h1>{f'<p>{_text(about)}</p>' if about else ''}</header>",
        _table(figures) if figures else "",
        *map(_plain_table, tables),
        f'<section><h2>Curves</h2><div class="charts">{"".join(map(_chart, charts))}</div></section>' if charts else "",
        *map(_gallery, galleries),
        f"<footer>mmgen, {time.strftime('%Y-%m-%d %H:%M')}</footer>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
    write_atomically(Path(path), page.encode())


def _text(text: str) -> str:
    return html.escape(str(text))


# Figures -------------------------------------------------------------------------------------------------------------


def _table(figures: Sequence[Figure]) -> str:
    """Where nothing has a target there is no column of them."""
    aimed = any(figure.wanted for figure in figures)

    def row(f: Figure) -> str:
        target = f"<td>{_text(f.wanted)}</td><td>{_mark(f.reached, 'reached', 'missed')}</td>" if aimed else ""
        return f"<tr><th>{_text(f.name)}</th><td class=value>{_text(f.shown)}</td>{target}</tr>"

    rows, target = "".join(map(row, figures)), "<th>target</th><th></th>" if aimed else ""
    head = f"<thead><tr><th></th><th class=value>result</th>{target}</tr></thead>"
    return f'<section><h2>Figures</h2><div class="wide"><table>{head}<tbody>{rows}</tbody></table></div></section>'


def _plain_table(table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        return f"<tr><th>{_text(cells[0])}</th>{''.join(f'<td class=value>{_text(cell)}</td>' for cell in cells[1:])}</tr>"

    head = f"<tr><th></th>{''.join(f'<th class=value>{_text(name)}</th>' for name in table.columns[1:])}</tr>"
    body = "".join(map(row, table.rows))
    grid = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<section><h2>{_text(table.title)}</h2><div class="wide">{grid}</div></section>'


def _mark(good: bool | None, yes: str, no: str) -> str:
    """Right or wrong by sign and word, not by colour alone."""
    if good is None:
        return ""
    return f'<span class="mark {"good" if good else "bad"}">{"✓" if good else "✗"}&nbsp;{_text(yes if good else no)}</span>'


# Curves --------------------------------------------------------------------------------------------------------------


def chart_file(chart: Chart) -> str:
    """One chart as an SVG file, for pages that hold no HTML; its names stand above it."""
    names, plot = _plot(chart)
    top = -16 * len(names) - 24

    def line(y: int, text: str, color: str) -> str:
        return f'<text x="{LEFT}" y="{y}" style="fill: var(--{color}); font: 12px sans-serif">{text}</text>'

    keys = "".join(line(8 - 16 * (len(names) - row), name, f"c{i}") for row, (i, name) in enumerate(names))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {top} {WIDTH} {HEIGHT - top}"><style>{STYLE}</style>'
        f'<rect y="{top}" width="{WIDTH}" height="{HEIGHT - top}" style="fill: var(--card)"/>'
        f"{line(top + 16, _text(chart.title), 'ink')}{keys}{plot}</svg>\n"
    )


def _chart(chart: Chart) -> str:
    names, plot = _plot(chart)
    if not names:
        return ""
    keys = "".join(f'<span class="key"><i class="c{i}"></i>{name}</span>' for i, name in names)
    legend = f'<div class="legend">{keys}</div>' if len(names) > 1 else ""
    return (
        f"<figure><figcaption>{_text(chart.title)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{plot}</svg></figure>'
    )


def _plot(chart: Chart) -> tuple[list[tuple[int, str]], str]:
    """The curves' colours and names, and what an svg element holds; nothing where there is no point."""
    curves = {name: _thinned(*curve) for name, curve in chart.curves.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return [], ""
    xs, ys = zip(*(point for points in curves.values() for point in points), strict=True)
    x_ticks, y_ticks = ticks(min(0, *xs), max(xs)), ticks(min(ys), max(ys))
    (left, right), (low, high) = (x_ticks[0], max(xs)), (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))

    def place(x: float, y: float) -> str:
        across = (x - left) / (right - left or 1) * (WIDTH - LEFT - RIGHT)
        up = (y - low) / (high - low or 1) * (HEIGHT - TOP - BOTTOM)
        return f"{LEFT + across:.1f},{HEIGHT - BOTTOM - up:.1f}"

    lines = [_line(i % COLOURS, [place(*point) for point in points]) for i, points in enumerate(curves.values())]
    last = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in curves.items())
    title = f"<title>{_text(chart.title)}: at the end {_text(last)}</title>"
    axes = _axes(chart.across, x_ticks, y_ticks, place)
    return [(i % COLOURS, _text(name)) for i, name in enumerate(curves)], title + axes + "".join(lines)


def _line(colour: int, places: Sequence[str]) -> str:
    """A curve, and where its points are if they are few: a lone one is no line."""
    marked = [place.split(",") for place in places] if len(places) <= MARKED else []
    dots = "".join(f'<circle class="dot c{colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in marked)
    return f'<polyline class="curve c{colour}" points="{" ".join(places)}"/>{dots}'


def _axes(counted: str, x_ticks: Sequence[float], y_ticks: Sequence[float], place: Callable[[float, float], str]) -> str:
    parts = [f'<text class="tick" x="{LEFT - 7}" y="{HEIGHT - 8}" text-anchor="end">{_text(counted)}</text>']
    for y in y_ticks:
        height = place(x_ticks[0], y).split(",")[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{float(height) + 3.5:.1f}" text-anchor="end">{_tick(y)}</text>')
    for x in x_ticks:
        across = float(place(x, y_ticks[0]).split(",")[0])
        if across <= WIDTH - RIGHT + 1:
            parts.append(f'<text class="tick" x="{across:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_tick(x)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{round(value, 6):g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose low .. high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _thinned(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    points = [(float(x), float(y)) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    if len(points) <= POINTS:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, POINTS).astype(int)]


# Pictures ------------------------------------------------------------------------------------------------------------


def _gallery(gallery: Gallery) -> str:
    cards = "".join(_card(card, gallery.shown) for card in gallery.cards)
    about = f"<p>{_text(gallery.about)}</p>" if gallery.about else ""
    return f'<section><h2>{_text(gallery.title)}</h2>{about}<div class="cards">{cards}</div></section>'


def _card(card: Card, shown: int) -> str:
    state = "" if card.good is None else " good" if card.good else " bad"
    shown = max(shown, NARROWEST // len(card.pictures))
    pictures = "".join(_picture(picture, shown, card.text) for picture in card.pictures)
    width = len(card.pictures) * (shown + 6) - 6
    text = f"<p>{_text(card.text)}</p>" if card.text else ""
    return (
        f'<div class="card{state}" style="width:{width}px"><div class="row">{pictures}</div>'
        f"{text}{_mark(card.good, card.note or 'right', card.note or 'wrong')}</div>"
    )


def _picture(picture: UInt8[np.ndarray, "H W 3"], shown: int, text: str) -> str:
    data = base64.b64encode(png_bytes(picture)).decode()
    return f'<img src="data:image/png;base64,{data}" width="{shown}" height="{shown}" alt="{_text(text)}">'


STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #17181c; --soft: #5d606b; --line: #e2e2de;
  --good: #17803d; --bad: #c4312b;
  --c0: #2a6fd6; --c1: #e0662b; --c2: #17803d; --c3: #8a4fc4; --c4: #0b8a94; --c5: #9a7a14; }
@media (prefers-color-scheme: dark) { :root { --page: #131417; --card: #1d1f24; --ink: #ececee; --soft: #a2a5af;
  --line: #34363d; --good: #4cc57a; --bad: #ff7a70;
  --c0: #6aa5f5; --c1: #f0935f; --c2: #4cc57a; --c3: #bd8cf0; --c4: #45c1cb; --c5: #d3b04b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px; }
h1 { font-size: 28px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 75ch; }
table, figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; overflow: hidden; }
th, td { padding: 8px 12px; text-align: left; border-top: 1px solid var(--line); font-weight: normal; }
th:first-child, td:first-child { padding-left: 18px; } th:last-child, td:last-child { padding-right: 18px; }
thead th { border-top: 0; color: var(--soft); font-size: 13px; }
td { color: var(--soft); } td.value, th.value { text-align: right; font-variant-numeric: tabular-nums; }
td.value { color: var(--ink); font-weight: 600; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 14px 6px; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font: 11px sans-serif; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--hue); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; overflow-wrap: anywhere; font-size: 13px; color: var(--soft); }
.key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle; }
.key i { background: var(--hue); } .dot { fill: var(--hue); }
.c0 { --hue: var(--c0); } .c1 { --hue: var(--c1); } .c2 { --hue: var(--c2); }
.c3 { --hue: var(--c3); } .c4 { --hue: var(--c4); } .c5 { --hue: var(--c5); }
.cards { display: flex; flex-wrap: wrap; gap: 14px; }
.card { box-sizing: content-box; padding: 10px; font-size: 13px; line-height: 1.35; border-top-width: 3px; }
.card.good { border-top-color: var(--good); } .card.bad { border-top-color: var(--bad); }
.card p { margin: 8px 0 4px; color: var(--ink); } .row { display: flex; gap: 6px; }
img { image-rendering: pixelated; border-radius: 4px; display: block; box-shadow: 0 0 0 1px var(--line); }
.mark { display: inline-block; margin-top: 4px; }
.mark { font-weight: 600; } .mark.good { color: var(--good); } .mark.bad { color: var(--bad); }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
"""
