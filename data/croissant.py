"""Descriptions of prepared data sets in Croissant 1.0 (http://mlcommons.org/croissant/1.0), with the
vocabulary for responsible AI."""

from collections.abc import Mapping
from typing import Any

from data.dataset import UNLABELLED, About

CORE, RAI = "http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"
CROISSANT_TERMS = """citeAs column extract field fileProperty fileObject fileSet format includes
    isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace
    samplingRate separator source subField transform equivalentProperty"""
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in CROISSANT_TERMS.split()},
}
"""The JSON-LD context of https://docs.mlcommons.org/croissant/docs/croissant-spec.html."""
SPLITS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
USE = "Comparing accuracy and memory of semantic segmentation of large images."


def describe(
    name: str, about: About, facts: Mapping[str, Any], sha256: str, version: str
) -> dict[str, Any]:
    """The description of a prepared data set as JSON-LD.

    Args:
        facts: further properties, such as `license`, `url` and `rai:dataLimitations`.
        sha256: SHA-256 of its dataset.json, which has the SHA-256 of every file; empty if unknown.
        version: version of the benchmark.
    """
    root = f"data/prepared/{name}"
    makers = [{"@type": "Organization", "name": one} for one in facts.get("creator", ())]
    index: dict[str, Any] = {
        "@type": "cr:FileObject",
        "@id": "dataset.json",
        "name": "dataset.json",
        "description": "Classes, splits, and the SHA-256 of every array.",
        "contentUrl": f"{root}/dataset.json",
        "encodingFormat": "application/json",
    }
    arrays = [
        _arrays("images", root, "(3, H, W) uint8, red, green, blue"),
        _arrays("labels", root, f"(H, W) uint8, index of a class; {UNLABELLED} is unlabelled"),
    ]
    classes = [
        {"classes/index": index, "classes/name": one, "classes/colour": "#" + bytes(colour).hex()}
        for index, (one, colour) in enumerate(zip(about.classes, about.palette, strict=True))
    ]
    splits = [{"splits/name": split, "splits/url": url} for split, url in SPLITS.items()]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CORE, RAI],
        "name": name,
        "description": about.credit or name,
        "version": f"{version}.0.0",
        "rai:dataUseCases": USE,
        "rai:dataPreprocessingProtocol": f"`dvc repro prepare@{name}` decodes all files to arrays.",
        **facts,
        **({"creator": makers} if makers else {}),
        "distribution": [index | ({"sha256": sha256} if sha256 else {}), *arrays],
        "recordSet": [
            _records("classes", classes, index="sc:Integer", name="sc:Text", colour="sc:Text"),
            _records("splits", splits, name="sc:Text", url="sc:URL")
            | {"dataType": "cr:Split", "key": {"@id": "splits/name"}},
        ],
    }


def _arrays(kind: str, root: str, layout: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": kind,
        "name": kind,
        "description": f"Arrays {layout}.",
        "encodingFormat": "application/x-npy",
        "includes": f"{root}/{kind}/*.npy",
    }


def _records(id: str, data: list[dict[str, Any]], /, **kinds: str) -> dict[str, Any]:
    fields = [
        {"@type": "cr:Field", "@id": f"{id}/{one}", "name": one, "dataType": kind}
        for one, kind in kinds.items()
    ]
    return {"@type": "cr:RecordSet", "@id": id, "name": id, "field": fields, "data": data}
