"""Made-up runs for the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report.data import RunData, shown_real

EVIL = "<script>alert('x')</script>\"&"


class Elements(HTMLParser):
    """Parsed elements, text and blocks of data of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.blocks: dict[str, str] = {}
        self._block = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._block = dict(attrs).get("id", "code") if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._block = ""

    def handle_data(self, data):
        if self._block:
            self.blocks[self._block] = data
        else:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def index(self) -> dict[str, Any]:
        """The gallery's index."""
        return json.loads(self.blocks["gallery-index"])


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "method": "utilgen", "dataset": "digits", "shots": 2, "seed": 3,
        "accuracy": {"real_only": 0.7951, "vanilla": 0.8824, "final": 0.8917},
        "num_real": 4, "num_synthetic": 1234, "seconds": {"pool": 60.0, "final": 20.0}, "versions": {"jax": "0.10.2"},
    } | changes  # fmt: skip


def real_of(images: np.ndarray, labels: Any, class_names: Any = ("zero", "one")) -> LabelledImages:
    return LabelledImages(
        images, np.array(labels), tuple(f"id {row}" for row in range(len(labels))), tuple(class_names)
    )


def real_images() -> LabelledImages:
    return real_of(np.zeros((4, 8, 8, 1), np.uint8), [0, 0, 1, 1])


def pool_of(weights: Any, label: int = 0, side: int = 16, **fields: Any) -> Pool:
    images = np.random.default_rng(1).integers(0, 256, (len(weights), side, side, 3), np.uint8)
    records = [
        PoolRecord(file_name=f"a/{place}.png", label=label, prompt=f"prompt {place}", weight=weight, difficulty=0.25)
        for place, weight in enumerate(weights)
    ]
    return Pool(images, np.full(len(weights), label, np.int32), tuple(records))


def run_data(real: LabelledImages | None = None, **fields: Any) -> RunData:
    return RunData(**shown_real(real or real_images()), **fields)
