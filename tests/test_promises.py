"""Every promise of docs/predict.md and docs/data.md, with the tests that hold it; and those that no other
file has."""

import ast
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from conftest import ROOT, call_command
from PIL import Image
from rasterio.transform import Affine
from test_large_files import SIZE, _saved, in_memory, job_of, pixels, read, tiff

from bench.commands.predict import command
from bench.config import read_suite
from bench.errors import UserError
from bench.pipeline.train import train
from bench.run import open_run, save
from bench.streaming import predict_file
from bench.streaming.partial import Partial
from data import deepglobe, inria, isic
from data.image_file import read_image
from data.image_header import gdal

PREDICT = {
    "uses a run of `params.yaml` (or of `--suite FILE`) with its checkpoint, or `--checkpoint FILE`, "
    "or `--random SEED`": ["test_promises::test_the_command_takes_what_it_says"],
    "writes the class of every pixel with the classes' colours": ["test_large_files::test_formats"],
    "labels are bitwise equal for": [
        "test_large::test_labels_are_those_in_memory",
        "test_large::test_settings_that_change_the_way",
    ],
    "at most 5 of 10,000 labels": ["test_large::test_labels_are_those_in_memory"],
    "runs in memory if the prediction fits": [
        "test_large::test_what_needs_the_image_in_memory_says_so",
        "test_large_files::test_in_memory_where_there_is_no_other_way",
    ],
    "is rejected otherwise with the memory that it needs and an alternative": [
        "test_large_files::test_memory_is_kept_to"
    ],
    "does not fit on the disk is rejected after the first patch": [
        "test_large::test_maps_that_the_disk_cannot_hold_are_told_after_the_first"
    ],
    "none of which depends on the image": [
        "test_large_files::test_memory_does_not_grow_with_the_image"
    ],
    "takes the largest sub-batch whose prediction fits": [
        "test_large_files::test_memory_is_kept_to"
    ],
    "If one patch at a time is too much, it does not start": [
        "test_large_files::test_memory_is_kept_to"
    ],
    "3 bytes per pixel for the decoded image, 1 for labels, 1 for nodata, the encoded labels": [
        "test_promises::test_the_disk_has_to_hold_six_bytes_per_pixel"
    ],
    "Free space is checked first": [
        "test_large_files::test_a_full_disk_is_told_before_and_what_it_needs"
    ],
    "PNG, JPEG, TIFF with BigTIFF, GeoTIFF and COG": [
        "test_large_files::test_formats",
        "test_image_file::test_tiff_layouts_and_the_place_of_alpha",
        "test_promises::test_a_cog_is_read",
    ],
    "recognised by their first bytes": ["test_promises::test_the_first_bytes_tell_the_format"],
    "up to 8 bits a channel: RGB, grey, palette": [
        "test_image_file::test_grey_levels_and_numbers_of_few_bits",
        "test_large_files::test_a_palette_grey_and_alpha",
    ],
    "an orientation tag turns the image, and so its labels": [
        "test_large_files::test_an_orientation_turns_image_and_labels",
        "test_image_file::test_orientation",
    ],
    "three of more bands, from 1": [
        "test_large_files::test_three_bands_of_more",
        "test_image_file::test_the_order_of_bands_never_changes_what_is_hidden",
    ],
    "given to the network as they are; unlabelled (255) in the output": [
        "test_large_files::test_a_georeference_and_nodata",
        "test_large_files::test_a_palette_grey_and_alpha",
        "test_image_file::test_palettes_with_any_transparent_entries",
        "test_image_file::test_an_internal_mask_hides",
    ],
    "files beside the image | not read": [
        "test_image_file::test_files_beside_an_image_are_not_read"
    ],
    "GeoTIFF, tiled, deflate, BigTIFF where needed; with `--cog` a COG with overviews; `.png`: "
    "palette. 255 is nodata": [
        "test_promises::test_how_label_files_are_written",
        "test_large_files::test_a_cog_keeps_labels_palette_and_place",
    ],
    "CRS and transform, control points, rational polynomial coefficients (`.tif`)": [
        "test_large_files::test_a_georeference_and_nodata",
        "test_large_files::test_control_points",
        "test_large_files::test_rational_polynomials_and_control_points_without_a_system_are_kept",
    ],
    "16 bits and others (scaling is your choice), CMYK and L\\*a\\*b\\*, several pages, animation": [
        "test_image_file::test_images_that_are_refused"
    ],
    "a georeference with an orientation tag": [
        "test_promises::test_a_georeference_with_an_orientation_is_refused"
    ],
    "other bands without `--bands`, truncated or damaged files": [
        "test_large_files::test_images_that_are_refused"
    ],
    "decode only in blocks over 64 MiB": [
        "test_large_files::test_files_that_must_be_decoded_whole_have_a_limit"
    ],
    "with a fingerprint of the image, weights, settings and torch's version": [
        "test_promises::test_what_makes_a_prediction_begin_again"
    ],
    "Another fingerprint starts again, and so does `--fresh`": [
        "test_large_files::test_other_weights_begin_anew",
        "test_promises::test_fresh_begins_again",
    ],
    "Labels are bitwise those of an uninterrupted run": [
        "test_large_files::test_killed_again_and_again"
    ],
}
DATA = {
    "GLNet's lists, 454/207/142": ["test_paper_data::test_the_published_counts_add_up"],
    "Kaggle with your token; or a zip or folder": [
        "test_paper_data::test_deepglobe_from_kaggle",
        "test_paper_data::test_deepglobe_as_the_user_has_put_it",
        "test_paper_data::test_tokens_are_taken_from_where_kaggle_has_them",
    ],
    "the challenge's archives; or those in": [
        "test_paper_data::test_isic_from_its_addresses",
        "test_paper_data::test_isic_as_the_user_has_put_it",
    ],
    "Inria's 7z in five volumes; or those in": [
        "test_paper_data::test_inria_from_its_volumes",
        "test_paper_data::test_inria_as_the_user_has_put_it",
    ],
    "at a pinned commit with a known SHA-256": [
        "test_paper_data::test_a_list_that_is_not_the_published_one"
    ],
    "`unknown` of DeepGlobe is left out of the mean": [
        "test_paper_data::test_deepglobe_from_kaggle"
    ],
    "have two means": ["test_paper_data::test_both_means_of_two_classes"],
    "PNG, JPEG or TIFF, 8 bits, RGB or grey, of any size": [
        "test_folder::test_two_folders_become_a_data_set",
        "test_folder::test_a_jpeg_is_an_image_too",
    ],
    "Labels hold one colour or number per class": [
        "test_labels::test_colours_become_classes",
        "test_labels::test_numbers_become_classes",
    ],
    "each class has its `id`, by default its place in the list": [
        "test_folder::test_ids_and_unlabelled",
        "test_labels::test_numbers_become_classes",
    ],
    "the id 255 always is one": [
        "test_labels::test_numbers_are_mapped_and_255_is_unlabelled_unless_it_is_a_class"
    ],
    "or lists: {train: train.txt, ...} in data/raw/mine": [
        "test_folder::test_splits_by_list",
        "test_folder::test_what_is_wrong_is_one_sentence_and_nothing_is_left",
    ],
    "{train: 0.8, val: 0.1, test: 0.1, seed: 0}": [
        "test_folder::test_shares_are_drawn_by_the_seed_alone"
    ],
    "`image_suffix: _sat`, `label_suffix: _mask`. Lists may name files or ids": [
        "test_folder::test_lists_as_people_have_them"
    ],
    "`tolerance: 40` accepts colours at most 40 grey levels away": [
        "test_labels::test_near_colours_are_taken_within_the_tolerance_alone",
        "test_labels::test_a_mask_that_was_a_jpeg",
    ],
    "lists all errors, counts images, sizes and class shares per split, and draws": [
        "test_folder::test_a_look_lists_all_that_is_wrong",
        "test_folder::test_a_look_counts_and_draws",
    ],
    "`images/ID.npy` (3, H, W) and `labels/ID.npy` (H, W), 8 bit": [
        "test_data::test_what_is_prepared_is_what_is_read"
    ],
    "at least 20 times as fast as decoding a JPEG and a PNG": [
        "test_patches::test_patches_come_twenty_times_as_fast_as_by_decoding"
    ],
    "reading patches never takes the memory of one image": [
        "test_patches::test_memory_does_not_grow_with_the_data_set"
    ],
    "are deleted after unpacking": ["test_paper_data::test_deepglobe_from_kaggle"],
    "stops at the first error; `glnet-bench check NAME` lists all": [
        "test_folder::test_what_is_wrong_is_one_sentence_and_nothing_is_left",
        "test_folder::test_a_look_lists_all_that_is_wrong",
    ],
    "an image without a label, or a label without an image, or of another size": [
        "test_folder::test_what_is_wrong_is_one_sentence_and_nothing_is_left"
    ],
    "georeferenced more than half a pixel away": [
        "test_labels::test_a_label_that_lies_elsewhere_than_its_image",
        "test_labels::test_a_label_of_other_pixels_or_of_another_system",
    ],
    "a colour or number that no class has, with the number of pixels and the place of the first": [
        "test_labels::test_near_colours_are_taken_within_the_tolerance_alone",
        "test_labels::test_a_label_that_cannot_be_used",
    ],
    "a file that is truncated, damaged, animated, of several pages, or no PNG, JPEG or TIFF": [
        "test_labels::test_an_image_that_cannot_be_used",
        "test_image_file::test_images_that_are_refused",
    ],
    "more than 8 bits a channel, bands other than grey or RGB, CMYK or L\\*a\\*b\\*": [
        "test_labels::test_an_image_that_cannot_be_used",
        "test_image_file::test_images_that_are_refused",
    ],
    "labels of numbers may hold any integers": [
        "test_image_file::test_numbers_of_every_kind_with_any_nodata"
    ],
    "a JPEG as a label of numbers": ["test_labels::test_a_label_that_cannot_be_used"],
    "a number that the file marks as nodata and the settings make a class": [
        "test_labels::test_nodata_of_geographic_software_is_unlabelled"
    ],
    "a name in a list without an image, or in two splits; two names that differ in case or suffix": [
        "test_folder::test_what_is_wrong_is_one_sentence_and_nothing_is_left"
    ],
    "one image in two splits, by its decoded pixels": [
        "test_folder::test_what_is_wrong_is_one_sentence_and_nothing_is_left"
    ],
    "only a warning for published data sets, or with `duplicates: warn`": [
        "test_promises::test_published_data_sets_may_have_an_image_twice",
        "test_folder::test_leaks_may_be_let_through_and_are_told",
    ],
    "one image twice in a split; a class absent from a split; an image without labelled pixels": [
        "test_folder::test_leaks_may_be_let_through_and_are_told",
        "test_folder::test_a_look_at_a_source_without_files",
    ],
    "an orientation tag (image and label each turned by their own)": [
        "test_labels::test_exif_turns_image_and_label_alike",
        "test_folder::test_a_look_lists_all_that_is_wrong",
    ],
    "images in no list and files that are not images, which are left out": [
        "test_promises::test_what_no_list_names_is_left_out",
        "test_folder::test_a_look_lists_all_that_is_wrong",
    ],
    "Pixels that an image or a label hides (alpha 0, nodata) are unlabelled": [
        "test_labels::test_transparent_pixels_are_unlabelled",
        "test_labels::test_nodata_that_is_no_whole_number_is_unlabelled",
    ],
    "A palette and grey are accepted": [
        "test_labels::test_grey_becomes_rgb_and_opaque_alpha_goes",
        "test_labels::test_colours_become_classes",
    ],
    "reads files here, in prediction and in the report": [
        "test_large_files::test_training_and_prediction_see_the_same_pixels_and_hide_the_same"
    ],
    "A tolerance that would allow two classes is rejected": [
        "test_labels::test_colours_that_leave_a_choice_are_refused"
    ],
    "a channel is on from 128": ["test_labels::test_a_tolerance_of_127_is_the_threshold_at_128"],
    "in blocks of 16 MiB by range, four at a time": [
        "test_fetch::test_blocks_come_several_at_once"
    ],
    "the next start requests only the others": [
        "test_fetch::test_a_later_start_asks_for_what_is_missing_alone"
    ],
    "A server without ranges sends one stream": ["test_fetch::test_a_file_comes_whole_and_once"],
    "Status 429 and 5xx, silence for 60 s and interruptions are retried": [
        "test_fetch::test_a_busy_server_is_asked_again",
        "test_fetch::test_a_server_that_hangs",
        "test_fetch::test_cuts_in_the_middle",
    ],
    "the pause that the server asks for": ["test_fetch::test_retry_after_is_kept_to"],
    "a public repository, or `data/raw/idrid` | official test; val from a seed": [
        "test_real_data::test_retinas",
        "test_real_data::test_an_archive_or_a_folder_of_the_user",
        "test_real_data::test_the_validation_images_are_drawn_by_a_seed",
    ],
    "a public repository, or `data/raw/fold-*` | two folds": [
        "test_real_data::test_mosaics",
        "test_real_data::test_every_mosaic_is_in_one_split_of_a_fold_and_in_one_test",
    ],
    "A web page instead of the file, or an unexpected length or SHA-256": [
        "test_fetch::test_a_wrong_answer_is_one_sentence",
        "test_fetch::test_a_web_page_in_disguise",
    ],
    "its list of images and their sizes are checked instead": [
        "test_paper_data::test_deepglobe_that_is_not_whole"
    ],
}
PROMISES = [
    (page, words, tests)
    for page, table in (("docs/predict.md", PREDICT), ("docs/data.md", DATA))
    for words, tests in table.items()
]


@pytest.mark.parametrize(("page", "words", "tests"), PROMISES, ids=lambda one: str(one)[:50])
def test_a_promise_is_on_its_page_and_has_its_tests(
    page: str, words: str, tests: list[str]
) -> None:
    text = " ".join((ROOT / page).read_text().split())
    assert words in text, "these words are no longer on the page"
    for name in tests:
        file, function = name.split("::")
        tree = ast.parse((ROOT / f"tests/{file}.py").read_text())
        assert function in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["docs/predict.md", "docs/data.md"])
def test_every_line_of_what_is_refused_or_kept_has_a_promise(page: str) -> None:
    """Of the table of formats, and of the lists of errors and warnings."""
    text = (ROOT / page).read_text()
    lines = [line for line in text.splitlines() if line.startswith(("- a", "- o", "- m", "| "))]
    promised = [words for where, words, _ in PROMISES if where == page]
    told = [line for line in lines if "|---" not in line and len(line) > 12]
    assert len(told) > 6
    for line in told:
        if line.startswith("| suite"):
            continue
        assert any(words in line or line.strip("- |")[:40] in words for words in promised), line


# --- promises without a test elsewhere ------------------------------------------------------------


def test_the_command_takes_what_it_says(project: Path) -> None:
    image = _saved(Path("a.png"), pixels())
    run = open_run(read_suite(), "unet-patch")
    train(read_suite(), "unet")
    torch.manual_seed(4)
    save(Path("other.pt"), run.build().state_dict())
    Path("params.yaml").rename("suite.yaml")
    found = {}
    for name, more in {
        "own": [],
        "other": ["--checkpoint", "other.pt"],
        "random": ["--random", 5, "--fresh"],
        "smaller": ["--set", "size_px=64", "--max-memory", "8GiB"],
        "swapped": ["--bands", 3, 2, 1],
    }.items():
        out = Path(f"{name}.tif")
        words = ["--suite", "suite.yaml", "--run", "unet-patch", image, "-o", out, *more]
        call_command(command, *words)
        found[name] = read(out).tobytes()
    assert len(set(found.values())) == len(found)
    with pytest.raises(UserError, match=r"There is no params\.yaml here"):
        call_command(command, "--run", "unet-patch", image, "-o", "no.tif")


@pytest.mark.parametrize("short", [0, 1])
def test_the_disk_has_to_hold_six_bytes_per_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    from bench.streaming.predict_file import _check_disk

    partial = Partial(tmp_path / "labels.tif", {})
    held = sum(path.stat().st_blocks * 512 for path in partial.folder.iterdir())
    free = 6 * SIZE[0] * SIZE[1] - held - short
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    if short:
        with pytest.raises(UserError, match="101 x 75 px need"):
            _check_disk(tmp_path / "labels.tif", partial, SIZE)
    else:
        _check_disk(tmp_path / "labels.tif", partial, SIZE)
    partial.release()


def test_a_cog_is_read(tmp_path: Path) -> None:
    tall = np.kron(pixels(), np.ones((11, 11, 1), np.uint8))  # more than one tile
    plain = tiff(tmp_path / "plain.tif", tall.transpose(2, 0, 1), photometric="rgb")
    with gdal():
        rasterio.shutil.copy(plain, tmp_path / "a.tif", driver="COG", compress="deflate")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], tall)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_the_first_bytes_tell_the_format(tmp_path: Path, kind: str) -> None:
    Image.fromarray(pixels()).save(tmp_path / "plain", kind)
    wanted, _ = read_image(tmp_path / "plain")
    for suffix in ("png", "jpg", "tif", "bin"):
        (tmp_path / "plain").rename(tmp_path / f"a.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}")[0], wanted)
        (tmp_path / f"a.{suffix}").rename(tmp_path / "plain")


PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 4600000)}


@pytest.mark.parametrize("name", ["a.tif", "a.png", "cog.tif"])
def test_how_label_files_are_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    image = tiff(tmp_path / "image.tif", pixels().transpose(2, 0, 1), photometric="rgb", **PLACE)
    predict_file(image, folder / name, job_of(), cog="cog" in name, silent=True)
    assert [path.name for path in folder.iterdir()] == [name]
    with warnings.catch_warnings(), rasterio.open(folder / name) as file:
        assert (file.nodata, file.count, file.dtypes) == (255, 1, ("uint8",))
        assert file.colormap(1)[1] == (30, 200, 30, 255)
        if file.driver == "GTiff":
            assert file.profile["tiled"]
            assert file.compression.value == "DEFLATE"
            assert (file.crs, file.transform) == tuple(PLACE.values())
        assert np.array_equal(file.read(1), in_memory(job_of(), pixels()))
    assert (folder / name).read_bytes()[:4] in (b"II*\0", b"\x89PNG")  # a small one is no BigTIFF


def test_a_georeference_with_an_orientation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels()).save(path, exif=exif)
    assert read_image(path)[0].shape == (*SIZE[::-1], 3)
    with gdal(), rasterio.open(path, "r+") as file:
        file.crs, file.transform = PLACE.values()
    with pytest.raises(UserError, match=r"georeference and an orientation tag \(6\)"):
        predict_file(path, tmp_path / "labels.tif", job_of(), silent=True)


def test_what_makes_a_prediction_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = sys.modules["bench.streaming.predict_file"]
    seen: list[dict[str, Any]] = []

    def noted(output: Path, fingerprint: dict[str, Any], fresh: bool) -> Partial:
        seen.append(fingerprint)
        return Partial(output, fingerprint, fresh)

    monkeypatch.setattr(module, "Partial", noted)
    image, other = _saved(tmp_path / "a.png", pixels()), _saved(tmp_path / "b.png", pixels()[::-1])

    def predict(image: Path = image, job: Any = None, **more: Any) -> dict[str, Any]:
        predict_file(image, tmp_path / "labels.tif", job or job_of(), silent=True, **more)
        return seen[-1]

    first = predict()
    assert predict() == first
    changed: list[Callable[[], dict[str, Any]]] = [
        lambda: predict(other),
        lambda: predict(bands=(3, 2, 1)),
        lambda: predict(job=job_of(size_px=64)),
        lambda: predict(job=module.replace(job_of(), weights=1)),
        lambda: predict(job=module.replace(job_of(), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))),
        lambda: predict(
            job=module.replace(job_of(), compute=module.replace(job_of().compute, threads=2))
        ),
    ]
    for change in changed:
        assert change() != first
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert predict() != first


def test_fresh_begins_again(tmp_path: Path) -> None:
    for fresh, resumed in ((False, False), (False, True), (True, False)):
        partial = Partial(tmp_path / "labels.tif", {"weights": "a"}, fresh)
        assert partial.resumed == resumed
        partial.mark_done("labels", 1)
        partial.release()


def test_published_data_sets_may_have_an_image_twice() -> None:
    for source in (deepglobe, inria, isic):
        assert not source.about(source.Settings()).leaks_refused


def test_what_no_list_names_is_left_out(tmp_path: Path) -> None:
    from test_folder import fill, settings

    from data.folder import survey

    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    fill(tmp_path, "abcd")
    lists = {"train": ["a"], "val": ["b"], "test": ["c"]}
    found = survey(settings(splits=lists), tmp_path)
    assert [entry.id for entry in found.valid_entries()] == ["a", "b", "c"]
    assert found.notes == ["1 images are in no split and are left out."]
