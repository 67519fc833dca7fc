"""A folder of pictures measured, and two compared: one pass over the pictures, then all figures with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any

from ..core.errors import InputError
from ..core.progress import progress_bar
from .distances import compare_distance, distance, precision_and_recall
from .features import Clip, Extractor, Judge, batches, edits, fingerprint
from .folders import Shown
from .intervals import FEWEST, RESAMPLES, Difference, Measure, measured, paired
from .report import plain
from .states import KEEP, Features, Scores


@dataclass(frozen=True)
class Seen:
    """What is known of a set of pictures after one pass; sets add up.

    Attributes:
        features: of all of them, None without an extractor.
        scores: judge -> scores by prompt.
        sizes: "WIDTHxHEIGHT" -> number of pictures.
    """

    features: Features | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Seen) -> Seen:
        if (self.features is None) != (other.features is None) or set(self.scores) != set(other.scores):
            raise InputError("Sets of pictures add up when they were looked at in the same way.")
        features = None if self.features is None or other.features is None else self.features + other.features
        scores = {name: scores + other.scores[name] for name, scores in self.scores.items()}
        return Seen(features, scores, self.sizes + other.sizes)


@dataclass(frozen=True)
class Look:
    """How pictures are looked at.

    Attributes:
        extractor: for distances between sets; None measures none.
        judges: for figures by prompt.
        batch: pictures at a time.
        keep: see `Features`.
        resamples, seed: of the intervals.
    """

    extractor: Extractor | None = None
    judges: Sequence[Judge] = ()
    batch: int = 32
    keep: int = KEEP
    resamples: int = RESAMPLES
    seed: int = 0

    def at(self, pictures: Sequence[Shown], *, judged: bool = True, what: str = "pictures") -> Seen:
        """Look at pictures, once, batch by batch.

        Args:
            judged: whether they answer prompts, and are to be resampled by them.

        Raises:
            InputError: for a picture that cannot be read, or answers no prompt that is needed.
        """
        judges = self.judges if judged else ()
        empty = Seen(Features(self.keep) if self.extractor else None, {judge.name: Scores() for judge in judges})
        bar = progress_bar(total=len(pictures), desc=what, leave=False)
        with bar:
            return reduce(lambda seen, part: seen + part, self._parts(pictures, judges, judged, bar), empty)

    def _parts(self, shown: Sequence[Shown], judges: Sequence[Judge], judged: bool, bar: Any) -> Iterator[Seen]:
        for part in batches(shown, self.batch):
            pictures = [each.open() for each in part]
            prompts = [each.prompt for each in part if each.prompt is not None]
            if judges and len(prompts) < len(part):
                name = next(each.name for each in part if each.prompt is None)
                raise InputError(f"No prompt is known for {name}; give --prompts, or a text file beside each picture.")
            features = None
            if self.extractor is not None:
                groups = prompts if judged and len(prompts) == len(part) else None
                keys = [fingerprint(picture) for picture in pictures]
                features = Features(self.keep).add(self.extractor(pictures), keys=keys, groups=groups)
            scores = {judge.name: Scores().add(prompts, judge(pictures, prompts)) for judge in judges}
            bar.update(len(part))
            yield Seen(features, scores, Counter(f"{picture.width}x{picture.height}" for picture in pictures))


@dataclass(frozen=True)
class Result:
    """Figures, and how they came about.

    Attributes:
        figures: of one set, or differences of two.
        about: what was measured with what, the resize policy among it.
        notes: what a reader should know before trusting them.
    """

    figures: tuple[Measure, ...]
    about: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result in terms that JSON knows."""
        figures = [
            {**asdict(each), "verdict": each.verdict} if isinstance(each, Difference) else asdict(each)
            for each in self.figures
        ]
        return plain({"figures": figures, "about": self.about, "notes": list(self.notes)})

    def __str__(self) -> str:
        both = any(isinstance(each, Difference) for each in self.figures)
        head = (
            ("", "A", "B", "A - B", "95 % interval", "n", "A is") if both else ("", "figure", "95 % interval", "n", "")
        )
        rows = [head, *(_row(each) for each in self.figures)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += ["", *(f"{key}: {value}" for key, value in self.about.items())]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _row(each: Measure) -> tuple[str, ...]:
    spread = f"{each.low:.4g} to {each.high:.4g}"
    if isinstance(each, Difference):
        sides = (f"{each.first:.4g}", f"{each.second:.4g}", f"{each.value:+.4g}")
        return each.name, *sides, spread, str(each.count), each.verdict
    return each.name, f"{each.value:.4g}", spread, str(each.count), f"{each.better} is better"


def evaluate(pictures: Sequence[Shown], look: Look, *, against: Sequence[Shown] | None = None) -> Result:
    """Measure pictures: by their prompts with every judge, and against other pictures as FID, KID, precision, recall.

    Raises:
        InputError: when there is nothing to measure, or a side has too few pictures.
    """
    if not look.judges and (against is None or look.extractor is None):
        raise InputError("There is nothing to measure: give prompts, or pictures to hold these against.")
    made = look.at(pictures)
    options: Any = {"resamples": look.resamples, "seed": look.seed}
    figures = [
        measured(name, list(s.by_prompt.values()), better="higher", **options) for name, s in made.scores.items()
    ]
    sides = [made]
    if against is not None and look.extractor is not None:
        real = look.at(against, judged=False, what="pictures to hold against")
        sides.append(real)
        assert made.features is not None and real.features is not None
        figures += [distance(name, made.features, real.features, **options) for name in ("FID", "KID")]
        figures += precision_and_recall(made.features, real.features, **options)
    return Result(tuple(figures), _about(look, sides), _notes(sides, figures))


def evaluate_edits(before: Sequence[Shown], after: Sequence[Shown], look: Look, clip: Clip) -> Result:
    """Measure edited pictures, which have the names of those they were made from, with a caption each before and after.

    Raises:
        InputError: when names differ or captions are missing, with all problems.
    """
    pairs = {shown.stem: shown for shown in before}
    faults = {
        "edited pictures have no picture of their name before the edit": [s for s in after if s.stem not in pairs],
        "pictures before the edit have no caption": [s for s in before if s.prompt is None],
        "edited pictures have no caption": [s for s in after if s.prompt is None],
    }
    problems = [f"{len(those)} {what}, such as {those[0].name}" for what, those in faults.items() if those]
    if problems:
        raise InputError(f"The edits cannot be measured: {'; '.join(problems)}.")
    directional, kept = Scores(), Scores()
    for part in batches(after, look.batch):
        sources = [pairs[shown.stem] for shown in part]
        old, new = [s.open() for s in sources], [s.open() for s in part]
        found = edits(clip, old, new, [str(s.prompt) for s in sources], [str(s.prompt) for s in part])
        names = [shown.name for shown in part]
        directional, kept = directional.add(names, found.directional), kept.add(names, found.kept)
    figures = [
        measured(name, list(scores.by_prompt.values()), better="higher", resamples=look.resamples, seed=look.seed)
        for name, scores in (("directional similarity", directional), ("picture similarity", kept))
    ]
    about = {"judged by": f"{clip.name}; resized: {clip.policy}", **_drawn(look)}
    return Result(tuple(figures), about)


def compare(
    first: Sequence[Shown], second: Sequence[Shown], look: Look, *, against: Sequence[Shown] | None = None
) -> tuple[Result, dict[str, list[tuple[str, float, float]]]]:
    """Compare pictures of the same prompts, prompt by prompt.

    Returns:
        the differences with their verdicts; and for every judge (prompt, score of the first, score of the second).

    Raises:
        InputError: when there is nothing to measure, or the prompts differ.
    """
    if not look.judges and (against is None or look.extractor is None):
        raise InputError("There is nothing to measure: give prompts, or pictures to hold these against.")
    one, two = look.at(first, what="A"), look.at(second, what="B")
    options: Any = {"resamples": look.resamples, "seed": look.seed}
    sides, figures, rows = [one, two], [], {}
    for name, scores in one.scores.items():
        a, b = scores.by_prompt, two.scores[name].by_prompt
        figures.append(paired(name, a, b, **options))
        rows[name] = [(prompt, a[prompt], b[prompt]) for prompt in a]
    if against is not None and look.extractor is not None:
        real = look.at(against, judged=False, what="pictures to hold against")
        sides.append(real)
        assert one.features is not None and two.features is not None and real.features is not None
        figures += [compare_distance(n, one.features, two.features, real.features, **options) for n in ("FID", "KID")]
    notes = list(_notes(sides, figures))
    if figures and figures[0].count < FEWEST:
        notes.append(f"below {FEWEST} prompts no verdict is given; more and more diverse prompts tell more.")
    if len(figures) > 1:
        notes.append("each verdict alone errs in 1 of 20; several figures err more often together.")
    return Result(tuple(figures), _about(look, sides), tuple(notes)), rows


def _about(look: Look, sides: Sequence[Seen]) -> dict[str, str]:
    about = {"pictures": "; ".join(", ".join(f"{n} of {size}" for size, n in sorted(s.sizes.items())) for s in sides)}
    if look.judges:
        about["judged by"] = "; ".join(f"{judge.name}: {judge.about}" for judge in look.judges)
    if look.extractor is not None and any(side.features is not None for side in sides):
        about["features"] = f"{look.extractor.name}; resized: {look.extractor.policy}"
    return about | _drawn(look)


def _drawn(look: Look) -> dict[str, str]:
    return {"intervals": f"95 %, bootstrap, {look.resamples} resamples, seed {look.seed}"}


def _notes(sides: Sequence[Seen], figures: Sequence[Measure]) -> tuple[str, ...]:
    notes = [f"{each.name}: all scores are equal, so resampling sees no spread." for each in figures
             if each.low == each.high]  # fmt: skip
    if len({size for side in sides for size in side.sizes}) > 1:
        notes.append("sizes differ; what resizing does to pictures then counts as a difference between them.")
    counts = [len(side.features) for side in sides if side.features is not None]
    widths = [len(side.features.moments.mean) for side in sides if side.features is not None]
    if len(counts) > 1 and min(counts) <= max(widths):
        notes.append(
            f"{min(counts)} pictures are few for {max(widths)} features: FID grows as pictures get fewer, so compare "
            "it only at one number of pictures; KID does not."
        )
    return tuple(notes)
