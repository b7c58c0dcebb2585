"""Checks of a data set's raw files: a summary, all problems, and a sheet of some images with their
labels."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.errors import UserError
from data.dataset import PREPARED, UNLABELLED, About, Pair, check_values
from data.image_header import is_turned
from data.inspection import Facts, facts, leaks, other_warnings, shares
from data.labels import Entry, Survey

THUMB_PX = 160
SHOWN = 6
"""Images of each split on the sheet."""
MOST_PRINTED = 20


@dataclass(frozen=True)
class Findings:
    """The result of reading every image."""

    checked: Facts
    errors: list[str]
    """`prepare` refuses the data set for these."""
    warnings: list[str]
    """`prepare` prints these."""
    thumbs: dict[str, list[tuple[str, Image.Image]]]
    """By split: (id, image beside label)."""


def look(about: About, entries: Iterable[Entry | Pair], survey: Survey | None = None) -> Findings:
    """Read every image with its label; what cannot be read becomes an error and is left out."""
    checked = {}
    errors = list(survey.problems) if survey else []
    warnings = list(survey.notes) if survey else []
    thumbs: dict[str, list[tuple[str, Image.Image]]] = {}
    for entry in entries:
        try:
            pair = entry.read() if isinstance(entry, Entry) else entry
            check_values(pair.label, len(about.classes), Path(pair.id))
        except UserError as error:
            errors.append(str(error))
            continue
        if isinstance(entry, Entry):
            turned = [str(path) for path in (entry.image, entry.label) if is_turned(path)]
            warnings += [f"{path} is turned as its orientation tag says." for path in turned]
        checked[pair.id] = facts(pair, about)
        shown = thumbs.setdefault(pair.split, [])
        if len(shown) < SHOWN:
            shown.append((pair.id, thumb(pair, about)))
    (errors if about.leaks_refused else warnings).extend(leaks(checked))
    return Findings(checked, errors, warnings + other_warnings(about, checked), thumbs)


def table(about: About, found: Findings) -> str:
    """Counts, sizes and class shares by split, then errors and warnings."""
    splits = shares(found.checked)
    images = Counter(check["split"] for check in found.checked.values())
    lines = [f"{'split':14}" + "".join(f"{split:>14}" for split in splits)]
    lines.append(f"{'images':14}" + "".join(f"{images[split]:14,}" for split in splits))
    for name in (*about.classes, "unlabelled"):
        row = [100 * pixels[name] / max(sum(pixels.values()), 1) for pixels in splits.values()]
        lines.append(f"{name[:13]:14}" + "".join(f"{share:12.2f} %" for share in row))
    sizes = Counter((c["height_px"], c["width_px"]) for c in found.checked.values())
    most = ", ".join(f"{n} of {h} x {w} px" for (h, w), n in sizes.most_common(5))
    lines.append(f"sizes: {most}" + (f", {len(sizes) - 5} others" if len(sizes) > 5 else ""))
    for kind, sentences in (("error", found.errors), ("warning", found.warnings)):
        lines += [f"{kind}: {sentence}" for sentence in sentences[:MOST_PRINTED]]
        if len(sentences) > MOST_PRINTED:
            lines.append(f"{kind}: {len(sentences) - MOST_PRINTED} more")
    return "\n".join(lines)


def thumb(pair: Pair, about: About) -> Image.Image:
    """An image beside its label in the classes' colours; unlabelled pixels are hatched."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(about.palette)] = about.palette
    height, width = pair.label.shape
    scale = THUMB_PX / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    image = Image.fromarray(pair.image).resize(size, Image.Resampling.BOX)
    label = np.array(Image.fromarray(pair.label).resize(size, Image.Resampling.NEAREST))
    drawn = colours[label]
    stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) % 6 < 3
    hatched = label == UNLABELLED
    drawn[hatched] = np.where(stripes[hatched], 200, 90)[:, None]
    both = Image.new("RGB", (2 * THUMB_PX + 4, size[1]), "white")
    both.paste(image, (0, 0))
    both.paste(Image.fromarray(drawn), (THUMB_PX + 4, 0))
    return both


def sheet(about: About, found: Findings) -> Image.Image:
    """Some images of every split with their labels, and the classes' colours."""
    across, down, title = 2 * THUMB_PX + 20, THUMB_PX + 24, 20
    wide = max((len(shown) for shown in found.thumbs.values()), default=1)
    page = Image.new("RGB", (wide * across + 10, len(found.thumbs) * (down + title) + 50), "white")
    draw = ImageDraw.Draw(page)
    left = 10
    for name, colour in zip(about.classes, about.palette, strict=True):
        draw.rectangle((left, 10, left + 12, 22), fill=colour, outline="black")
        draw.text((left + 18, 10), _plain(name), fill="black")
        left += 30 + 7 * len(name)
    for row, (split, shown) in enumerate(found.thumbs.items()):
        top = 40 + row * (down + title)
        draw.text((10, top), split, fill="black")
        for column, (id, image) in enumerate(shown):
            place = (10 + column * across, top + title)
            page.paste(image, place)
            draw.text((place[0], place[1] + image.height + 4), _plain(id)[:50], fill="black")
    return page


def _plain(text: str) -> str:
    # The font that comes with Pillow may be without other letters.
    return text.encode("ascii", "replace").decode()


def write_sheet(name: str, about: About, found: Findings) -> Path:
    """The sheet as a file beside the prepared data."""
    path = PREPARED / f"{name}.contact.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(about, found).save(path)
    return path
