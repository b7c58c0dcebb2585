"""Checks a data set's raw files: a summary, all problems, and a contact sheet of some images with
their labels."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.errors import UserError
from data.dataset import PREPARED, UNLABELLED, About, Pair, check_values
from data.image_header import has_orientation
from data.inspection import Facts, class_pixels, facts, leaks, other_warnings
from data.labels import Entry, Survey

THUMBNAIL_PX = 160
THUMBNAILS = 6
"""Images of each split on the contact sheet."""
MAX_PRINTED = 20
"""Errors, and warnings, that are printed."""


@dataclass(frozen=True)
class Findings:
    """The result of reading every image."""

    checked: Facts
    errors: list[str]
    """Reasons for which `prepare` refuses the data set."""
    warnings: list[str]
    thumbnails: dict[str, list[tuple[str, Image.Image]]]
    """(id, image beside its label) by split."""


def check_pairs(
    about: About, entries: Iterable[Entry | Pair], survey: Survey | None = None
) -> Findings:
    """Read every image with its label; one that cannot be read is an error and is skipped."""
    checked = {}
    errors = list(survey.problems) if survey else []
    warnings = list(survey.notes) if survey else []
    thumbnails: dict[str, list[tuple[str, Image.Image]]] = {}
    for entry in entries:
        try:
            pair = entry.read() if isinstance(entry, Entry) else entry
            check_values(pair.label, len(about.classes), Path(pair.id))
        except UserError as error:
            errors.append(str(error))
            continue
        if isinstance(entry, Entry):
            rotated = filter(has_orientation, (entry.image, entry.label))
            warnings += [f"{path} is rotated according to its orientation tag." for path in rotated]
        checked[pair.id] = facts(pair, about)
        examples = thumbnails.setdefault(pair.split, [])
        if len(examples) < THUMBNAILS:
            examples.append((pair.id, thumbnail(pair, about)))
    (errors if about.leaks_refused else warnings).extend(leaks(checked))
    return Findings(checked, errors, warnings + other_warnings(about, checked), thumbnails)


def table(about: About, found: Findings) -> str:
    """Counts, sizes and class shares by split, then errors and warnings."""
    splits = class_pixels(found.checked)
    images = Counter(check["split"] for check in found.checked.values())
    lines = [f"{'split':14}" + "".join(f"{split:>14}" for split in splits)]
    lines.append(f"{'images':14}" + "".join(f"{images[split]:14,}" for split in splits))
    for name in (*about.classes, "unlabelled"):
        row = [100 * pixels[name] / max(sum(pixels.values()), 1) for pixels in splits.values()]
        lines.append(f"{name[:13]:14}" + "".join(f"{share:12.2f} %" for share in row))
    sizes = Counter((c["height_px"], c["width_px"]) for c in found.checked.values())
    common = ", ".join(f"{n} of {h} x {w} px" for (h, w), n in sizes.most_common(5))
    lines.append(f"sizes: {common}" + (f", {len(sizes) - 5} others" if len(sizes) > 5 else ""))
    for kind, sentences in (("error", found.errors), ("warning", found.warnings)):
        lines += [f"{kind}: {sentence}" for sentence in sentences[:MAX_PRINTED]]
        if len(sentences) > MAX_PRINTED:
            lines.append(f"{kind}: {len(sentences) - MAX_PRINTED} more")
    return "\n".join(lines)


def thumbnail(pair: Pair, about: About) -> Image.Image:
    """An image beside its label in the classes' colours; unlabelled pixels are hatched."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(about.palette)] = about.palette
    height, width = pair.label.shape
    scale = THUMBNAIL_PX / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    image = Image.fromarray(pair.image).resize(size, Image.Resampling.BOX)
    label = np.array(Image.fromarray(pair.label).resize(size, Image.Resampling.NEAREST))
    coloured = colours[label]
    stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) % 6 < 3
    hatched = label == UNLABELLED
    coloured[hatched] = np.where(stripes[hatched], 200, 90)[:, None]
    sheet = Image.new("RGB", (2 * THUMBNAIL_PX + 4, size[1]), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(Image.fromarray(coloured), (THUMBNAIL_PX + 4, 0))
    return sheet


def contact_sheet(about: About, found: Findings) -> Image.Image:
    """Some images of every split with their labels, and a legend of the classes."""
    width, height, title = 2 * THUMBNAIL_PX + 20, THUMBNAIL_PX + 24, 20
    columns = max(map(len, found.thumbnails.values()), default=1)
    page = Image.new(
        "RGB", (columns * width + 10, len(found.thumbnails) * (height + title) + 50), "white"
    )
    draw = ImageDraw.Draw(page)
    left = 10
    for name, colour in zip(about.classes, about.palette, strict=True):
        draw.rectangle((left, 10, left + 12, 22), fill=colour, outline="black")
        draw.text((left + 18, 10), _ascii(name), fill="black")
        left += 30 + 7 * len(name)
    for row, (split, examples) in enumerate(found.thumbnails.items()):
        top = 40 + row * (height + title)
        draw.text((10, top), split, fill="black")
        for column, (id, image) in enumerate(examples):
            left, upper = 10 + column * width, top + title
            page.paste(image, (left, upper))
            draw.text((left, upper + image.height + 4), _ascii(id)[:50], fill="black")
    return page


def _ascii(text: str) -> str:
    # Pillow's default font may lack other letters.
    return text.encode("ascii", "replace").decode()


def write_contact_sheet(name: str, about: About, found: Findings) -> Path:
    """Save the contact sheet beside the prepared data; returns its path."""
    path = PREPARED / f"{name}.contact.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(about, found).save(path)
    return path
