"""What is wrong with a set of examples, with the names of the files and the cure, and a manifest of what is right.

Pictures are decoded as training decodes them. Nothing that is looked at is changed.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import InputError
from ...core.files import atomic_write
from ...core.images import decode
from ...core.progress import progress_bar
from ...core.records import FILE, FOLDER, HASH, LEFT_OUT, OWN, VERSION, Record, Records, files_in, is_picture
from .buckets import Size, assign, loss, plan
from .framing import ORIENTATION, located
from .likeness import Likeness, groups, likeness, near

SHOWN = 20
"""Examples that a text lists of one kind; the others are counted."""
LEVELS = ("error", "warning", "note")
HUGE = 64
"""A picture is huge from that many times the pixels that training sees of it."""
CUT = 0.25
"""Share of a picture that may be cut away without a word."""
FOREIGN = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".raw", ".dng", ".cr2", ".nef", ".svg", ".mp4", ".mov")
"""Endings of pictures that training does not read."""
SRGB_NAMES = ("srgb", "c2", "c2ci")
"""How profiles of the usual colour space are called; the short ones are Facebook's."""


class Kind(NamedTuple):
    """A kind of finding: how bad it is, what it is, and what to do."""

    level: str
    what: str
    cure: str


KINDS = {
    "source": Kind("error", "the list of examples", "Training stops with the same words"),
    "unreadable": Kind("error", "pictures that cannot be read", "Save them anew from the original, or take them away"),
    "enormous": Kind("error", "pictures too large to be decoded safely", "Save smaller copies"),
    "changed": Kind("error", "pictures that changed since the manifest was written", "Write a new manifest"),
    "uneven": Kind("error", "examples whose pictures have different sizes", "Bring the pictures of each to one size"),
    "uncaptioned": Kind("error", "pictures without a caption", "Write a .txt file beside each, or its metadata"),
    "untold": Kind("error", "captions that are neither texts nor lists of texts", "Put quotes around them"),
    "leak": Kind("error", "pictures that are in the other split too", "Take them out of one of the two"),
    "same": Kind("warning", "copies of a picture", "Keep the first, or training sees it more often"),
    "twice": Kind("warning", "pictures that are listed more than once", "Keep one line; repeat on purpose only"),
    "near": Kind("warning", "pictures that look nearly the same", "Keep the best of each group"),
    "near leak": Kind("warning", "pictures that look like one in the other split", "Take them out of one of the two"),
    "empty": Kind("warning", "empty captions", "Describe the picture; caption_dropout_prob drops captions by chance"),
    "long": Kind("warning", "captions longer than the text encoder reads", "Shorten them; the end is not seen"),
    "few": Kind("warning", "a single picture", "Add more; three to five are the least for a subject"),
    "tiny": Kind("warning", "pictures smaller than the resolution", "Find larger ones, or train at a lower resolution"),
    "huge": Kind("warning", "pictures far larger than the resolution", "Save smaller copies, which are decoded faster"),
    "cropped": Kind("warning", f"pictures that lose more than {CUT:.0%} to their bucket", "Crop them by hand"),
    "clear": Kind("warning", "pictures with transparent pixels", "Lay them over the ground you want; white is taken"),
    "print": Kind("warning", "pictures in colours for print", "Convert them to sRGB by their profile, which is unused"),
    "profile": Kind("warning", "pictures with a profile other than sRGB", "Convert them to sRGB by it; it is unused"),
    "moving": Kind("warning", "moving pictures", "Save the frames that you want; only the first is seen"),
    "unread": Kind("warning", "files that are not read", "Convert or rename them, or take them away"),
    "turned": Kind("note", "pictures turned by their EXIF orientation", "Nothing; they are seen upright"),
    "repeated": Kind("note", "captions of several pictures", "Say what differs, unless they are the same on purpose"),
}  # fmt: skip
BARRED = ("unreadable", "enormous", "changed", "uneven", "uncaptioned", "untold", "leak", "same", "twice")
"""Kinds that keep an example out of a manifest."""


@dataclass(frozen=True)
class Finding:
    """All examples of one kind.

    Attributes:
        kind: a name in `KINDS`.
        examples: names of files, and what there is to say of each.
    """

    kind: str
    examples: tuple[str, ...]

    def __str__(self) -> str:
        level, what, cure = KINDS[self.kind]
        shown = "".join(f"\n  {example}" for example in self.examples[:SHOWN])
        more = f"\n  ... and {len(self.examples) - SHOWN} more" if len(self.examples) > SHOWN else ""
        return f"{level}: {what} ({len(self.examples)}). {cure}.{shown}{more}"


@dataclass
class Seen:
    """An example after a look at its pictures.

    Attributes:
        record: the example.
        marks: kinds of finding, and what there is to say.
        size: height and width, upright; None when it cannot be read.
        likeness: what it is recognised by.
        bucket: height and width that training brings it to.
    """

    record: Record
    marks: list[tuple[str, str]] = field(default_factory=list)
    size: Size | None = None
    likeness: Likeness | None = None
    bucket: Size | None = None

    @property
    def barred(self) -> str | None:
        """Why the example is not good, or None."""
        reasons = [f"{kind}: {said}" if said else kind for kind, said in self.marks if kind in BARRED]
        return "; ".join(reasons) or None

    @property
    def cut(self) -> float | None:
        """The share that the crop takes away."""
        return None if self.size is None or self.bucket is None else loss(self.size, self.bucket)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        records: what was looked at.
        resolution: that training is meant to have.
        seen: every example.
        findings: by kind, errors first.
    """

    records: Records
    resolution: int
    seen: Sequence[Seen]
    findings: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(KINDS[finding.kind].level == "error" for finding in self.findings)

    @property
    def good(self) -> list[Seen]:
        """The examples that a manifest takes."""
        return [one for one in self.seen if one.barred is None]

    def buckets(self) -> dict[Size, list[Seen]]:
        """Return the good examples of every bucket, from the tallest to the widest."""
        found: dict[Size, list[Seen]] = {}
        for one in sorted((one for one in self.good if one.bucket), key=lambda one: one.bucket[1] / one.bucket[0]):  # type: ignore[index]
            found.setdefault(one.bucket, []).append(one)  # type: ignore[arg-type]
        return found

    def __str__(self) -> str:
        counts = Counter(KINDS[finding.kind].level for finding in self.findings)
        told = ", ".join(f"{counts[level]} kind{'s' * (counts[level] != 1)} of {level}" for level in LEVELS)
        lines = [f"{self.records.where}: {len(self.seen)} examples, {len(self.good)} of them good; {told}"]
        lines += [f"\n{finding}" for finding in self.findings]
        buckets = self.buckets()
        if buckets:
            good = [one for members in buckets.values() for one in members]
            square = sum(loss(one.size, (1, 1)) for one in good if one.size) / len(good)
            mean = sum(one.cut or 0 for one in good) / len(good)
            lines.append(f"\nbuckets at {self.resolution}: {mean:.1%} is cut away on average; one square: {square:.1%}")
        for (high, wide), members in buckets.items():
            worst = max(members, key=lambda one: one.cut or 0)
            few = f"{len(members)} picture{'s' * (len(members) != 1)}"
            lines.append(f"  {wide} x {high}: {few}, at most {worst.cut:.1%} cut away ({worst.record.name})")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "where": self.records.where,
            "ok": self.ok,
            "findings": [{"kind": f.kind, **KINDS[f.kind]._asdict(), "examples": f.examples} for f in self.findings],
            "examples": [
                {"name": one.record.name, "size": one.size, "bucket": one.bucket, "cut": one.cut, "barred": one.barred}
                for one in self.seen
            ],
        }


def examine(
    records: Records,
    *,
    image: str = "image",
    further: Sequence[str] = (),
    caption: str | None = "text",
    resolution: int = 512,
    tokenizer: Any = None,
    against: Records | None = None,
    least: int = 1,
) -> Report:
    """Return all that there is to say about examples.

    Args:
        image, further: columns of pictures; sizes, copies and buckets are those of the first.
        caption: column of the texts; None when training needs none, as DreamBooth.
        resolution: that training is meant to have, in pixels.
        tokenizer: of the text encoder, to count tokens.
        against: another split, which should share no picture with this one.
        least: pictures that a bucket must have, as many as an optimizer step sees.

    Raises:
        InputError: when there is no bucket for the resolution.
    """
    sizes = plan(resolution)
    absent = caption is not None and caption not in records.columns()
    found: dict[str, list[str]] = defaultdict(list)
    found["source"] = records.faults(image, *further, caption if absent else None)
    seen = list(each(records, partial(look, image=image, further=further, resolution=resolution), "Pictures"))
    if caption is not None and not absent:
        read(seen, caption, tokenizer)
    others = [] if against is None else list(each(against, partial(look, image=image), "The other split"))
    compare(seen, others, found)
    readable = [one for one in seen if one.size is not None]
    for one, bucket in zip(
        readable, assign([one.size for one in readable if one.size], sizes, least=least), strict=True
    ):
        one.bucket = bucket
        if (one.cut or 0) > CUT:
            one.marks.append(("cropped", f"{one.cut:.1%}"))
    if len(seen) == 1:
        found["few"] = [seen[0].record.name]
    if records.folder is not None and records.folder.is_dir():
        found["unread"] = unread(records.folder, [path for path in paths(records)])
    for one in seen:
        for kind, said in one.marks:
            found[kind].append(f"{one.record.name}{f' ({said})' if said else ''}")
    return Report(records, resolution, seen, [Finding(kind, tuple(found[kind])) for kind in KINDS if found.get(kind)])


def each(records: Records, look: Callable[[Record], Seen], title: str) -> Iterator[Seen]:
    """Yield a look at every example, several at a time, in order."""
    together = 4 * (os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool, progress_bar(total=len(records), desc=title) as bar:
        warnings.simplefilter("ignore")
        for first in range(0, len(records), together):
            yield from pool.map(look, records.rows[first : first + together])
            bar.update(min(together, len(records) - first))


def look(record: Record, *, image: str, further: Sequence[str] = (), resolution: int = 1) -> Seen:
    """Return an example after a look at its pictures."""
    seen = Seen(record)
    sizes = {}
    for column in (image, *further):
        if record.columns.get(column) is None:
            continue
        marks, picture = inspect(record.columns[column])
        seen.marks += [(kind, f"{column}: {said}" if further else said) for kind, said in marks]
        if picture is None:
            continue
        sizes[column] = f"{picture.width} x {picture.height}"
        if column == image:
            seen.size = (picture.height, picture.width)
            seen.likeness = likeness(picture)
            if min(seen.size) < resolution:
                seen.marks.append(("tiny", sizes[column]))
            elif picture.width * picture.height > HUGE * resolution**2 > HUGE:
                seen.marks.append(("huge", sizes[column]))
    if len(set(sizes.values())) > 1:
        seen.marks.append(("uneven", ", ".join(f"{name}: {size}" for name, size in sizes.items())))
    kept = record.columns.get(HASH)
    if kept is not None and seen.likeness is not None and kept != seen.likeness.pixels:
        seen.marks.append(("changed", ""))
    return seen


def inspect(source: Any) -> tuple[list[tuple[str, str]], Any]:
    """Return what is peculiar in a picture, and the decoded picture; None when it cannot be decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        file = located(source)
        header = file if isinstance(file, Image.Image) else Image.open(file)
        marks = list(traits(header))
        return marks, decode(located(source))
    except Image.DecompressionBombError as error:
        return [("enormous", str(error))], None
    except UnidentifiedImageError:
        return [("unreadable", "no picture of a known format")], None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        told = error.__cause__ if isinstance(error, InputError) and error.__cause__ else error
        said = told.strerror if isinstance(told, OSError) and told.strerror else str(told)
        return [("unreadable", said or type(told).__name__)], None


def traits(header: Any) -> Iterator[tuple[str, str]]:
    """Yield what is peculiar in an opened picture."""
    turn = header.getexif().get(ORIENTATION, 1)
    if turn != 1:
        yield "turned", f"orientation {turn}"
    if header.mode in ("CMYK", "YCCK", "LAB"):
        yield "print", header.mode
    else:
        name = profile(header.info.get("icc_profile"))
        if name is not None and not name.casefold().startswith(SRGB_NAMES):
            yield "profile", name
    if getattr(header, "is_animated", False) and header.format != "MPO":
        yield "moving", f"{header.n_frames} frames"
    if header.has_transparency_data:
        low = header.convert("RGBA").getchannel("A").getextrema()[0]
        if low < 255:
            yield "clear", f"opacity from {low / 255:.0%}"


def profile(data: bytes | None) -> str | None:
    """Return the name of a colour profile."""
    if not data:
        return None
    import io

    from PIL import ImageCms

    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data))).strip()
    except (OSError, ImageCms.PyCMSError):
        return "a profile that cannot be read"


def read(seen: Sequence[Seen], caption: str, tokenizer: Any) -> None:
    """Mark what is peculiar in captions."""
    owners: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        value = one.record.columns.get(caption)
        if value is None:
            one.marks.append(("uncaptioned", ""))
            continue
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            one.marks.append(("untold", f"{value!r}"[:60]))
            continue
        if any(not text.strip() for text in texts):
            one.marks.append(("empty", ""))
        for text in filter(str.strip, texts):
            owners[text].append(one)
            length = 0 if tokenizer is None else len(tokenizer(text, truncation=False, verbose=False).input_ids)
            if tokenizer is not None and length > tokenizer.model_max_length:
                one.marks.append(
                    ("long", f"{length} tokens of {tokenizer.model_max_length}; {unseen(text, tokenizer)}")
                )
    for text, members in owners.items():
        if len(members) > 1:
            shown = ", ".join(one.record.name for one in members[1:SHOWN])
            more = f" and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
            members[0].marks.append(("repeated", f"{text[:60]!r}, also of {shown}{more}"))


def unseen(text: str, tokenizer: Any) -> str:
    """Return the words of a caption that a text encoder does not see."""
    bare = tokenizer("", truncation=False).input_ids
    ids = tokenizer(text, truncation=False, add_special_tokens=False, verbose=False).input_ids
    return f"not seen: '{tokenizer.decode(ids[tokenizer.model_max_length - len(bare) :])[:80].strip()}'"


def compare(seen: Sequence[Seen], others: Sequence[Seen], found: dict[str, list[str]]) -> None:
    """Mark copies, and examples that are in the other split, and add what looks nearly the same to `found`."""
    away = {one.likeness.pixels: one.record.name for one in others if one.likeness is not None}
    first: dict[str, Seen] = {}
    for one in sorted(seen, key=lambda one: one.barred is not None):
        if one.likeness is None:
            continue
        if one.likeness.pixels in away:
            one.marks.append(("leak", f"there: {away[one.likeness.pixels]}"))
        before = first.setdefault(one.likeness.pixels, one)
        if before is not one:
            again = before.record.name == one.record.name
            one.marks.append(("twice", "") if again else ("same", f"as {before.record.name}"))
    here = list(first.values())
    there = [one for one in others if one.likeness is not None and one.likeness.pixels not in first]
    pairs = list(near([one.likeness for one in [*here, *there] if one.likeness is not None]))
    inside = ((one, other) for one, other in pairs if other < len(here))
    found["near"] = [", ".join(here[k].record.name for k in group) for group in groups(len(here), inside)]
    found["near leak"] = [
        f"{here[one].record.name} (there: {there[other - len(here)].record.name})"
        for one, other in pairs
        if one < len(here) <= other
    ]


def paths(records: Records) -> Iterator[Path]:
    """Yield the files of all pictures of a folder's examples."""
    for row in records.rows:
        yield from (value for value in row.columns.values() if isinstance(value, Path))


def unread(folder: Path, pictures: Sequence[Path]) -> list[str]:
    """Return the files of a folder that look like examples and are none."""
    files = files_in(folder)[0]
    beside = {path.with_suffix(".txt") for path in files if is_picture(path)}
    alone = {".txt": "no picture has that name", **dict.fromkeys(FOREIGN, "a format that is not read")}
    known = set(pictures)
    return [
        f"{path.relative_to(folder).as_posix()} ({alone[path.suffix.lower()]})"
        for path in files
        if path.suffix.lower() in alone and path not in beside and path not in known
    ]


def write(report: Report, file: Path) -> int:
    """Write the manifest of a folder, one JSON object per line, and return how many good examples it has.

    Good examples come with size, bucket and the hash of their pixels; the others say why they are left out. It is read
    as `metadata.jsonl` of the folder, and by its own name wherever it lies.

    Raises:
        InputError: when the file exists, or the examples do not lie in one folder.
    """
    check_manifest(report.records, file)
    folder = report.records.folder or Path()
    own = VERSION if file.resolve().parent == folder.resolve() else {**VERSION, FOLDER: str(folder.resolve())}
    rows: list[dict[str, Any]] = []
    for one in report.seen:
        row = named(one.record, folder)
        if one.barred is not None:
            row = left_out(row[FILE], one.barred, own)
        elif one.size is not None and one.likeness is not None:
            facts = {"width": one.size[1], "height": one.size[0], "bucket": one.bucket, HASH: one.likeness.pixels}
            row.update(facts)
        rows.append({OWN: own, **row})
    listed = {Path(folder, row[FILE]) for row in rows}
    strangers = [
        path for path in files_in(folder)[0] if is_picture(path) and path not in {*listed, *paths(report.records)}
    ]
    rows += [
        left_out(path.relative_to(folder).as_posix(), "no line of the metadata names it", own) for path in strangers
    ]
    atomic_write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(report.good)


def left_out(name: str, why: str, own: dict[str, Any]) -> dict[str, Any]:
    """Return the line of a picture that is no example."""
    return {OWN: {**own, LEFT_OUT: why}, FILE: name}


def check_manifest(records: Records, file: Path) -> None:
    """Raise InputError unless a manifest of these examples can be written there."""
    if records.folder is None:
        raise InputError("A manifest names files, and a hub dataset has none; save its pictures in a folder first.")
    if file.suffix != ".jsonl":
        raise InputError(f"A manifest is a .jsonl file; {file} is none.")
    if file.exists():
        raise InputError(f"{file} exists and is kept; name another file.")


def named(record: Record, folder: Path) -> dict[str, Any]:
    """Return the line of a metadata file that is read as an example."""
    line: dict[str, Any] = {FILE: record.name}
    for name, value in record.columns.items():
        if not isinstance(value, Path):
            line[name] = value
        else:
            line[FILE if name == "image" else f"{name}_{FILE}"] = value.relative_to(folder).as_posix()
    return line
