"""One page about a run, made of the files in its folder alone: curves, held-out losses, pictures, what stands out.

`report.html` needs no network, no font and no script. It is written anew after every checkpoint and at the end.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.files import atomic_write, read_json
from ..core.logging import add_handler, get_logger, remove_handler
from . import heldout, proof
from .charts import Line, chart, number, smoothed
from .lines import Lines
from .trainer import LOG, Trainer

logger = get_logger(__name__)
FILE = "report.html"
WARNINGS = "warnings.jsonl"
SETTINGS = "settings.json"
SHEET = re.compile(r"step-(\d+)\.png")
EMBEDDED = 6 * 2**20
"""Bytes of pictures that the page holds itself; the rest is linked."""
FRONT = 4
"""Sheets that are seen at once; earlier ones unfold."""
MOST_WARNINGS = 100
RISE = 0.02
"""A held-out loss that ends by more than this share above its lowest has risen."""
RAMP = ("#5b3db8", "#6d45c4", "#8a4cc0", "#a653b2", "#bf5a9c", "#d16484", "#dd726b", "#e48352", "#e5973a", "#dcab2c")
"""Colours of the ranges of noise levels, from little noise."""
STYLE = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#5c6470;--paper:#fff;--card:#f6f7f9;--rule:#dfe3e8;--blue:#2864dc;
--warm:#c2410c;--good:#1a7f4b;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e7eaef;--soft:#9aa4b2;--paper:#14171c;--card:#1c2027;--rule:#323843;
--blue:#7aa5ff;--warm:#f59e6c;--good:#5cc98f;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;padding:32px 24px 64px;max-width:1180px;color:var(--ink);background:var(--paper);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:26px;line-height:1.25;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:40px 0 12px}
h3{font-size:14px;margin:0 0 8px;font-weight:600}
.sub{color:var(--soft);margin:4px 0 20px;overflow-wrap:anywhere}
.none,.note{color:var(--soft);margin:6px 0;font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;min-width:0}
.tile b{display:block;font-size:22px;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}.good{color:var(--good)}.bad{color:var(--bad)}.warm{color:var(--warm)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px}
ul.found{margin:0;padding:0 0 0 20px}ul.found li{margin:4px 0}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule);stroke-width:1}.line,.faint{fill:none;stroke-linejoin:round;stroke-linecap:round}
.line{stroke-width:2}.faint{stroke-width:1;opacity:.35}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;margin:8px 0 0;color:var(--soft);font-size:13px}
.legend i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:middle}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600;color:var(--soft)}td:first-child{white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.v{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.settings{columns:2 420px;column-gap:32px}.settings div{display:flex;gap:12px;justify-content:space-between;
padding:3px 0;border-bottom:1px solid var(--rule);break-inside:avoid;font-size:13px}
.settings dt{color:var(--soft)}.settings dd{margin:0;text-align:right;overflow-wrap:anywhere;
font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.sheets{display:flex;flex-wrap:wrap;gap:16px}.sheets figure{margin:0;max-width:100%}
.sheets img{display:block;max-width:100%;height:auto;border-radius:6px;border:1px solid var(--rule)}
figcaption{color:var(--soft);font-size:13px;margin-top:4px}
summary{cursor:pointer;color:var(--soft);margin:12px 0}
"""


@dataclass(frozen=True)
class Files:
    """What the folder of a run says.

    Attributes:
        folder: of the run.
        log: a point per step, see `trainer.Log`.
        looks: at held-out examples, see `heldout`.
        warnings: what was warned of, with the step.
        settings: of the recipe.
        proof: see `proof.Result`; empty while there is none.
        sheets: step -> picture.
    """

    folder: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)
    sheets: Mapping[int, Path] = field(default_factory=dict)

    def line(self, name: str) -> list[tuple[float, float]]:
        """Return the values of the log under a name, by step."""
        return [(point["step"], point[name]) for point in self.log if isinstance(point.get(name), (int, float))]


def read(folder: Path) -> Files:
    """Return what the folder of a run says.

    Raises:
        InputError: when it is none.
        ConfigError: when one of its JSON files is damaged.
    """
    if not (folder / LOG).is_file():
        raise InputError(f"{folder} is not the folder of a training run: it has no {LOG}.")
    found = {int(match[1]): path for path in (folder / "previews").glob("*") if (match := SHEET.fullmatch(path.name))}
    settings, result = (
        read_json(folder / name) if (folder / name).is_file() else {} for name in (SETTINGS, proof.FILE)
    )
    log, looks, warnings = (Lines(folder / name).read() for name in (LOG, heldout.FILE, WARNINGS))
    return Files(folder, log, looks, warnings, settings, result, dict(sorted(found.items())))


def write(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a run, whole or not at all, and return its path.

    Raises:
        InputError: when it is none.
        ConfigError: when one of its JSON files is damaged.
    """
    folder = Path(folder).expanduser()
    atomic_write(folder / FILE, page(read(folder)))
    return folder / FILE


def page(files: Files) -> str:
    """Return the page."""
    name = escape(files.folder.resolve().name)
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{name}</h1>{subtitle(files)}",
        f'<div class="tiles">{"".join(tiles(files))}</div>',
        section("What stands out", f'<ul class="found">{"".join(f"<li>{line}</li>" for line in findings(files))}</ul>'),
        section("Curves", f'<div class="cards">{"".join(curves(files))}</div>'),
        section("Held-out examples", held(files)),
        section("Pictures on the way", sheets(files)),
        section("Warnings", warned(files)),
        section("Settings", settings(files)),
    ]
    return "".join(parts) + "</body></html>\n"


def section(title: str, content: str) -> str:
    """Return a section, or nothing for one without content."""
    return f"<h2>{title}</h2>{content}" if content else ""


def card(title: str, content: str, note: str = "") -> str:
    """Return a framed chart or table."""
    said = f'<p class="note">{note}</p>' if note else ""
    return f'<div class="card"><h3>{title}</h3>{content}{said}</div>'


def subtitle(files: Files) -> str:
    """Return what was trained on what."""
    names = {
        "pretrained_model_name_or_path": "from",
        "train_data_dir": "on",
        "instance_data_dir": "on",
        "dataset_name": "on",
    }
    said = [f"{word} {escape(str(files.settings[name]))}" for name, word in names.items() if files.settings.get(name)]
    return f'<p class="sub">Trained {", ".join(said)}</p>' if said else '<p class="sub">A training run</p>'


# What stands out -----------------------------------------------------------------------------------------------------


def tiles(files: Files) -> Iterator[str]:
    """Yield the figures at the top."""

    def tile(value: str, what: str, kind: str = "") -> str:
        return f'<div class="tile"><b class="{kind}">{value}</b><span>{what}</span></div>'

    total = files.settings.get("max_train_steps")
    done = files.log[-1]["step"] + 1 if files.log else 0
    yield tile(f"{done}", f"of {total} steps" if total else "steps")
    curve = smoothed(files.line("loss"))
    yield tile(number(curve[-1][1]) if curve else "none", "training loss at the end, smoothed")
    if files.looks:
        best = min(files.looks, key=lambda look: look["loss"])
        yield tile(number(best["loss"]), f"lowest held-out loss, at step {best['step']}")
    verdict = files.proof.get("verdict")
    kinds = {"proven": ("proven", "good"), "idle": ("no effect", "warm"), "failed": ("failed", "bad")}
    text, kind = kinds.get(str(verdict), ("not proven", ""))
    yield tile(text, "the saved file", kind)


def findings(files: Files) -> list[str]:
    """Return sentences about what a reader should know first."""
    return [*proved(files), *learned(files), *shortened(files), *broken(files)]


def proved(files: Files) -> list[str]:
    """Return what the comparison of the saved file says."""
    result = files.proof
    verdict = result.get("verdict")
    if verdict == "proven":
        return [
            f"The saved file was loaded again and predicts what was trained: the largest difference is "
            f"{number(result['gap'])}, while training changed predictions by up to {number(result['effect'])}."
        ]
    if verdict == "idle":
        return ["The saved file predicts what the untrained network does: training changed nothing."]
    if verdict:
        return [f"The saved file is not proven: {escape(str(result.get('why')))}."]
    return ["The saved file is not proven: the run has not ended, or the comparison was turned off."]


def learned(files: Files) -> list[str]:
    """Return what held-out examples say."""
    if not files.looks:
        return [
            "No examples were held out. heldout_share or heldout_data_dir measures what the run learns on pictures "
            "that it does not see."
        ]
    first, last = files.looks[0], files.looks[-1]
    best = min(files.looks, key=lambda look: look["loss"])
    change = last["loss"] / first["loss"] - 1 if first["loss"] else 0.0
    word = "fell" if change < 0 else "rose"
    found = [
        f"The held-out loss {word} by {abs(change):.1%}, from {number(first['loss'])} at step {first['step']} to "
        f"{number(last['loss'])} at step {last['step']}."
    ]
    if last["loss"] > best["loss"] * (1 + RISE):
        rise = last["loss"] / best["loss"] - 1
        found.append(
            f"Its lowest value was at step {best['step']}, and it rose by {rise:.1%} since: the run has begun to "
            "remember its examples. A checkpoint near that step may be the better result."
        )
    worse = [k for k, (now, then) in enumerate(zip(last["bins"], first["bins"], strict=True)) if now > then]
    if worse and change < 0:
        named = ", ".join(map(ranged, worse))
        found.append(f"It rose at {len(worse)} of {len(last['bins'])} ranges of noise: {named}.")
    return found


def shortened(files: Files) -> list[str]:
    """Return how many gradients were shortened, where it is a sizeable part."""
    limit, lengths = files.settings.get("max_grad_norm"), [value for _, value in files.line("grad_norm")]
    if not limit or not lengths:
        return []
    share = sum(length > limit for length in lengths) / len(lengths)
    said = f"At {share:.0%} of the steps the gradient was longer than {limit:g} and shortened."
    return [said] if share > 0.25 else []


def broken(files: Files) -> list[str]:
    """Return how many losses were not finite."""
    count = sum(not math.isfinite(value) for _, value in files.line("loss"))
    return [f"{count} losses were not finite."] if count else []


# Sections ------------------------------------------------------------------------------------------------------------


def curves(files: Files) -> Iterator[str]:
    """Yield the charts of the log."""
    loss = files.line("loss")
    lines = [Line(loss, "every step", "var(--blue)", faint=True), Line(smoothed(loss), "smoothed", "var(--blue)")]
    yield card("Training loss", chart(lines, label="training loss by step"))
    if files.looks:
        points = [(look["step"], look["loss"]) for look in files.looks]
        line = Line(points, "held-out loss", "var(--warm)", dots=True)
        note = "Not weighed, and always with the same pictures, noise and levels."
        yield card("Held-out loss", chart([line], label="held-out loss by step"), note)
    if lengths := files.line("grad_norm"):
        values = [value for _, value in lengths if math.isfinite(value) and value > 0]
        wide = bool(values) and max(values) > 100 * min(values)
        lines = [
            Line(lengths, "every step", "var(--blue)", faint=True),
            Line(smoothed(lengths), "smoothed", "var(--blue)"),
        ]
        yield card("Length of the gradient", chart(lines, label="length of the gradient by step", log=wide))
    rates = Line(files.line("lr"), "learning rate", "var(--blue)")
    yield card("Learning rate", chart([rates], label="learning rate by step", zero=True))


def ranged(k: int) -> str:
    """Return the name of a range of noise levels."""
    return f"{100 * k // heldout.BINS} to {100 * (k + 1) // heldout.BINS}%"


def held(files: Files) -> str:
    """Return the losses of every range of noise levels, as curves beside the first look, and as a table."""
    if not files.looks:
        return ""
    first, last = files.looks[0], files.looks[-1]
    best = min(files.looks, key=lambda look: look["loss"])
    lines = []
    for k, begun in enumerate(first["bins"]):
        points = [(look["step"], 100 * look["bins"][k] / begun) for look in files.looks if begun]
        lines.append(Line(points, ranged(k), RAMP[k * len(RAMP) // len(first["bins"])], dots=True))
    note = f"In percent of the loss at step {first['step']}. Ranges of noise levels go from little noise to much."
    drawing = card("Loss at every range of noise", chart(lines, label="held-out loss by step and range of noise"), note)
    looks = {f"step {look['step']}{what}": look for look, what in ((first, ""), (best, ", lowest"), (last, ""))}
    head = "".join(f'<th class="n">{what}</th>' for what in looks)
    rows = "".join(
        f"<tr><td>{ranged(k)}</td>"
        + "".join(f'<td class="n">{number(look["bins"][k])}</td>' for look in looks.values())
        + f'<td class="n">{percent(last["bins"][k], first["bins"][k])}</td></tr>'
        for k in range(len(first["bins"]))
    )
    head = f'<tr><th>noise</th>{head}<th class="n">change</th></tr>'
    table = card("Values", f'<div class="scroll"><table>{head}{rows}</table></div>')
    return f'<div class="cards">{drawing}{table}</div>'


def percent(now: float, then: float) -> str:
    """Return a change in percent, with its sign."""
    return f"{100 * (now / then - 1):+.1f}%".replace("-", "&minus;") if then else ""


def sheets(files: Files) -> str:
    """Return the previews, the newest first; as many as fit are part of the page, the others are linked."""
    if not files.sheets:
        return ""
    room, shown = EMBEDDED, []
    for step, path in sorted(files.sheets.items(), reverse=True):
        content = path.read_bytes()
        room -= len(content)
        place = f"previews/{path.name}"
        if room >= 0:
            place = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        width = 2 * int.from_bytes(content[16:20], "big") if len(content) > 24 else 0
        size = f' style="width:{width}px"' if 0 < width <= 720 else ""
        alt = f"pictures after step {step}"
        shown.append(f'<figure><img src="{place}" alt="{alt}"{size}><figcaption>step {step}</figcaption></figure>')
    prompts = files.settings.get("validation_prompt")
    prompts = prompts.split("|") if isinstance(prompts, str) else prompts or []
    said = "; ".join(escape(str(prompt).strip()) for prompt in prompts)
    note = f'<p class="note">Rows: {said}</p>' if said else ""
    first, rest = (f'<div class="sheets">{"".join(part)}</div>' for part in (shown[:FRONT], shown[FRONT:]))
    more = f"<details><summary>{len(shown) - FRONT} earlier ones</summary>{rest}</details>"
    return f"{note}{first}{more if len(shown) > FRONT else ''}"


def warned(files: Files) -> str:
    """Return what was warned of."""
    rows = [
        f'<tr><td class="n">{point["step"]}</td><td>{escape(str(point["text"]))}</td></tr>' for point in files.warnings
    ]
    head = '<tr><th class="n">step</th><th>warning</th></tr>'
    return f'<div class="card scroll"><table>{head}{"".join(rows)}</table></div>' if rows else ""


def settings(files: Files) -> str:
    """Return all settings; those that say nothing come last, in a row."""
    given = {name: value for name, value in files.settings.items() if value not in (None, "") and value is not False}
    rows = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value if isinstance(value, str) else json.dumps(value))}</dd></div>"
        for name, value in sorted(given.items())
    ]
    rest = ", ".join(escape(name) for name in sorted(set(files.settings) - set(given)))
    note = f'<p class="note">Off or unset: {rest}</p>' if rest else ""
    return f'<dl class="settings">{"".join(rows)}</dl>{note}' if rows else ""


# While a run goes on -------------------------------------------------------------------------------------------------


class Heard(logging.Handler):
    """Keeps the warnings of the library while a run goes on, each once, with the step."""

    def __init__(self, run: Trainer) -> None:
        super().__init__(logging.WARNING)
        self.run, self.lines = run, Lines(run.run.folder / WARNINGS)
        self.known: set[str] = set()

    def begin(self, run: Trainer) -> None:
        """Forget what a resumed run says again."""
        self.lines.cut(0 if run.found is None else run.found.step + 1)
        self.known = {point["text"] for point in self.lines.read()}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a warning down."""
        text = record.getMessage()
        if text not in self.known and len(self.known) < MOST_WARNINGS:
            self.known.add(text)
            try:
                self.lines.write([{"step": self.run.step, "text": text}])
            except OSError:
                self.handleError(record)


@contextmanager
def kept(run: Trainer) -> Iterator[None]:
    """Context in which a run writes its report after every checkpoint, and however it ends."""
    if not run.main:
        yield
        return
    heard = Heard(run)
    run.before.insert(0, heard.begin)
    run.after.append(lambda run: told(run.run.folder))
    add_handler(heard)
    try:
        yield
    finally:
        remove_handler(heard)
        told(run.run.folder)


def told(folder: Path) -> None:
    """Write the report of a run, if it got as far as a log; what prevents it is a warning, and ends no run."""
    if (folder / LOG).is_file():
        try:
            write(folder)
        except (OSError, ValueError) as error:
            logger.warning("The report of %s could not be written: %s", folder, error)
