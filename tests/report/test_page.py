import base64
import io
import os
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.pool.storage import Pool, PoolRecord
from utilgen_jax.report import page

EVIL = "<script>alert('x')</script>\"&"


class Elements(HTMLParser):
    """Parsed elements and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def summary(**changes):
    return {
        "method": "utilgen", "dataset": "digits", "shots": 2, "seed": 3,
        "accuracy": {"real_only": 0.7951, "vanilla": 0.8824, "final": 0.8917},
        "num_real": 4, "num_synthetic": 1234, "seconds": {"pool": 60.0, "final": 20.0}, "versions": {"jax": "0.10.2"},
    } | changes  # fmt: skip


def real_of(images, labels, class_names=("zero", "one")):
    return LabelledImages(images, np.array(labels), tuple(map(str, labels)), tuple(class_names))


def real_images():
    return real_of(np.zeros((4, 8, 8, 1), np.uint8), [0, 0, 1, 1])


def pool_of(weights, label=0, side=16):
    images = np.arange(len(weights), dtype=np.uint8)[:, None, None, None] * np.ones((side, side, 3), np.uint8)
    records = [PoolRecord(label=label, prompt=f"prompt {i}", weight=w, difficulty=0.25) for i, w in enumerate(weights)]
    return Pool(images, np.full(len(weights), label), tuple(records))


def written(tmp_path, pool, real=None, figures=None, config=None, **changes):
    real = real or real_images()
    path = page.write_report(tmp_path, summary(**changes), config or {}, real, pool, figures or {}, "run")
    assert path == tmp_path / "report" / "index.html"
    return Elements(path.read_text(encoding="utf-8"))


def test_page_holds_the_numbers(tmp_path):
    html = written(tmp_path, pool_of([0.5, 0.75]), config={"data": {"shots": 2}, "seed": 3})
    for text in ("79.5 %", "88.2 %", "89.2 %", "+8.7", "+9.7", "1,234", "1m20s", "jax 0.10.2", "mean weight 0.62"):
        assert text in html.text, text
    assert "data.shots 2 seed 3" in html.text and "Configuration, 2 fields" in html.text
    assert "Final (utilgen)" in html.text and "pool 1m00s" in html.text


def test_words_have_a_table_where_classes_have_several(tmp_path):
    assert "Words" not in written(tmp_path, pool_of([0.5])).text
    row = {"class": "crane", "word": EVIL, "images": 7, "weight": 0.25, "value": 0.875, "share": None}
    html = written(tmp_path, pool_of([0.5]), words=[row])
    assert "Words" in html.text and "Class Word Images Mean weight Value Chosen crane" in html.text
    assert f"{EVIL} 7 0.25 0.88 –" in html.text and not html.all("script")


def test_synthetic_images_only_have_a_column_of_their_own(tmp_path):
    html = written(tmp_path, pool_of([0.5, 0.75]), accuracy_synthetic_only={"vanilla": 0.5123, "final": 0.6234})
    assert "Trained on With real images Synthetic images only Points over real only Real Synthetic" in html.text
    assert "Real images only 79.5 % – – 4 0" in html.text and "Real + plain synthetic 88.2 % 51.2 % +8.7" in html.text
    assert "Final (utilgen) 89.2 % 62.3 % +9.7" in html.text
    # Of a run of before there are none.
    assert "Trained on Test accuracy Points" in written(tmp_path, pool_of([0.5, 0.75])).text


def test_text_from_data_is_escaped(tmp_path):
    pool = pool_of([0.5, 0.75])
    pool = replace(pool, records=tuple(replace(record, prompt=EVIL) for record in pool.records))
    evil = summary(method=EVIL, dataset=EVIL, seconds={EVIL: 1.0}, versions={EVIL: EVIL}, accuracy={EVIL: 0.5})
    real = replace(real_images(), class_names=(EVIL, EVIL))
    path = page.write_report(tmp_path, evil, {EVIL: {"x": EVIL}}, real, pool, {}, command=EVIL)
    html = Elements(path.read_text(encoding="utf-8"))
    assert not html.all("script")
    assert html.text.count("alert(") >= 10
    assert EVIL in [image["title"] for image in html.all("img")]
    allowed = {"class", "src", "alt", "title", "style", "lang", "charset", "name", "content", "http-equiv"}
    assert {attribute for _, attributes in html.elements for attribute in attributes} <= allowed


def test_page_loads_nothing(tmp_path):
    html = written(tmp_path, pool_of([0.5]))
    assert not html.all("link") and not html.all("script")
    assert all(image["src"].startswith("data:image/") for image in html.all("img"))
    (policy,) = [meta for meta in html.all("meta") if "http-equiv" in meta]
    assert policy["http-equiv"] == "Content-Security-Policy" and policy["content"].startswith("default-src 'none'")
    style = page._read_asset("report.css")
    assert "url(" not in style and "@import" not in style and "<" not in style


def test_highest_and_lowest_weights_in_order_and_capped(tmp_path):
    weights = np.random.default_rng(0).permutation(30) / 30
    html = written(tmp_path, pool_of(weights))
    shown = [int(image["title"].split()[1]) for image in html.all("img") if image["title"].startswith("prompt")]
    ranked = list(np.argsort(-weights))
    assert shown == ranked[:8] + ranked[-8:]
    assert "0.97 · 0.25" in html.text


def test_soft_labels_rank_images_of_equal_weight(tmp_path):
    pool = pool_of([1.0] * 20)
    sure = np.random.default_rng(0).permutation(20) / 20
    records = tuple(
        replace(record, soft_label=(own, 1 - own)) for record, own in zip(pool.records, sure.tolist(), strict=True)
    )
    html = written(tmp_path, replace(pool, records=records))
    shown = [int(image["title"].split()[1]) for image in html.all("img") if image["title"].startswith("prompt")]
    ranked = list(np.argsort(-sure))
    assert shown == ranked[:8] + ranked[-8:]
    assert "lowest soft label" in html.text and "0.95 · 0.25" in html.text
    plain = written(tmp_path, pool)
    shown = [image["title"] for image in plain.all("img") if image["title"].startswith("prompt")]
    assert shown == [f"prompt {index}" for index in range(16)] and "lowest weight" not in plain.text


@pytest.mark.parametrize("count", [3, 8, 11])
def test_no_image_is_shown_twice(tmp_path, count):
    html = written(tmp_path, pool_of(np.linspace(1, 0, count)))
    shown = [image["title"] for image in html.all("img") if image["title"].startswith("prompt")]
    assert shown == [f"prompt {index}" for index in range(count)]


def test_a_pool_without_weights_shows_its_first_images(tmp_path):
    html = written(tmp_path, pool_of([None] * 20), method="vanilla")
    shown = [image["title"] for image in html.all("img") if image["title"].startswith("prompt")]
    assert shown == [f"prompt {index}" for index in range(16)]
    assert "lowest weight" not in html.text and "– · 0.25" in html.text


def test_without_a_pool(tmp_path):
    html = written(tmp_path, None, method="real", num_synthetic=0, accuracy={"real_only": 0.8, "final": 0.8})
    assert "Real images" in html.text and "Hover" not in html.text and "+0.0" in html.text
    assert len(html.all("img")) == 4


def test_small_images_are_exact_and_pixelated(tmp_path):
    real = real_of(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8), [0], ["zero"])
    (image,) = written(tmp_path, None, real).all("img")
    assert image["class"] == "pixels" and image["src"].startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as opened:
        np.testing.assert_array_equal(np.asarray(opened), real.images[0, ..., 0])


def test_large_images_are_shrunk(tmp_path):
    real = real_of(np.zeros((1, 300, 600, 3), np.uint8), [0], ["zero"])
    (image,) = written(tmp_path, None, real).all("img")
    assert "class" not in image
    with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as opened:
        assert opened.size == (128, 64)


def test_number_of_classes_is_capped_with_a_note(tmp_path):
    names = [f"class {index}" for index in range(25)]
    html = written(tmp_path, None, real_of(np.zeros((25, 8, 8, 1), np.uint8), range(25), names))
    assert len(html.all("img")) == 20 and "The first 20 of 25 classes." in html.text and "class 20" not in html.text


def test_figures_are_embedded_in_their_order(tmp_path):
    files = {}
    for name, suffix in (("curves", "svg"), ("weight_curve", "png")):
        files[name] = tmp_path / f"{name}.{suffix}"
        files[name].write_bytes(name.encode())
    plots = [image for image in written(tmp_path, None, figures=files).all("img") if image.get("class") == "plot"]
    assert [image["alt"] for image in plots] == ["Weight by loss", "Training"]
    kinds = ["data:image/png;base64,", "data:image/svg+xml;base64,"]
    for image, kind, name in zip(plots, kinds, ("weight_curve", "curves"), strict=True):
        assert image["src"] == kind + base64.b64encode(name.encode()).decode()
    with pytest.raises(ValueError, match="unknown figures"):
        written(tmp_path, None, figures={"curve": files["curves"]})


def test_an_earlier_page_stays_when_writing_fails(tmp_path, monkeypatch):
    written(tmp_path, None)
    before = (tmp_path / "report" / "index.html").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, None, seed=4)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    assert (tmp_path / "report" / "index.html").read_bytes() == before
