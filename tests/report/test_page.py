"""The page of a run: its sections, in their order, and that nothing in the data is read as markup."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.report.conftest import EVIL, Elements, pool_of, real_images, run_data, summary
from utilgen_jax.report import MetricsWriter, html, page
from utilgen_jax.report.contact_sheet import contact_sheet

LABELS = np.array([0] * 60 + [1] * 40)
PREDICTED = {"real_only": np.zeros(100, int), "final": np.array([0] * 65 + [1] * 35)}  # 60 and 95 of 100 are right


def written(tmp_path, pool=None, data=None, **changes):
    path = page.write_report(tmp_path, summary(**changes), data or run_data(), pool)
    assert path == tmp_path / "report" / "index.html"
    return Elements(path.read_text(encoding="utf-8"))


def headings(elements):
    return [attributes["id"] for attributes in elements.all("section")]


def whole_run(tmp_path):
    """A run that has everything."""
    with MetricsWriter(tmp_path) as metrics:
        for step in (1, 2):
            metrics.write(step, "classifier_real", loss=1 / step)
    (tmp_path / "config.json").write_text('{"seed": 3, "data": {"shots": 2}}')
    (tmp_path / "report").mkdir()
    for name in ("difficulty_sweep", "hard_factors", "weight_curve_utilgen_0"):
        contact_sheet(np.zeros((2, 8, 8), np.uint8), 2).save(tmp_path / "report" / f"{name}.png")
    pool = pool_of([0.5, 0.75])
    return pool, run_data(
        test_labels=LABELS, predicted=PREDICTED, real_difficulty=np.array([0.1, 0.2]), plain_difficulty=np.ones(3),
        gate_gains=np.array([0.1, 0.2, 0.3]), requested_difficulty=np.array([0.25, 0.75]),
        attributes=[("thin|bold", "", 0.5, 0.25), ("thin|bold", "bold", 0.25, 0.5)], losses=np.array([1.0, 2.0]),
        map_real=np.ones((4, 2)), map_real_labels=np.array([0, 0, 1, 1]), map_explained=np.array([0.5, 0.25]),
        map_synthetic=np.zeros((2, 2)), map_synthetic_labels=np.zeros(2, int), flops={"UNet": 2.5e12},
        changed=[("seed", "0", "3")], inputs={"pixels": "abc123"}, command="python -m utilgen_jax.main", pool="pool",
    )  # fmt: skip


def test_the_sections_answer_in_the_order_in_which_one_asks(tmp_path):
    pool, data = whole_run(tmp_path)
    found = written(tmp_path, pool, data, words=[{"class": "crane", "word": "bird", "images": 7, "weight": 0.25}])
    assert headings(found) == [
        "did-it-help", "what-was-generated", "what-did-the-generator-learn", "what-did-it-cost", "how-do-i-repeat-it",
    ]  # fmt: skip
    for text in (
        "Yes: +35.0 points over real images alone [+26.0, +44.0]",
        "Real images only 79.5 % [50.0, 70.0]", "Real + plain synthetic 88.2 %", "Final (utilgen)", "1,234",
        "one 40 0.0 % 87.5 % +87.5", "one zero 40 5 -35",
        "had a loss 0.200 ± 0.058 lower on 3 held-out real images", "The adapter made this pool.",
        "Means: real 0.15, plain synthetic 1.00, this pool 0.25.", "none of thin|bold 50.0 % 25.0 % -25.0",
        "Weight by loss: utilgen, round 0", "Requested difficulty", "Hard factors", "crane bird 7 0.25",
        "pool 1m00s", "UNet 2.5", "python -m utilgen_jax.main", "seed 3 0", "data.shots 2", "jax 0.10.2",
        "pixels abc123",
    ):  # fmt: skip
        assert text in found.text, text
    drawn = [svg["aria-label"] for svg in found.all("svg")]
    assert len(drawn) == 5 and all(drawn) and len(found.all("img")) == 3


def test_a_section_without_data_is_left_out(tmp_path):
    found = written(tmp_path, method="real", accuracy={"real_only": 0.8, "final": 0.8}, num_synthetic=0)
    assert headings(found) == ["did-it-help", "which-images", "what-did-it-cost", "how-do-i-repeat-it"]
    assert "+0.0" in found.text and "Class by class" not in found.text and not found.all("svg")
    assert found.index["synthetic"] is None and len(found.index["real"]["label"]) == 4


def test_of_a_run_whose_predictions_were_not_kept_there_are_the_accuracies(tmp_path):
    found = written(tmp_path, pool_of([0.5, 0.75]))
    assert "Real images only 79.5 %" in found.text and "+9.7" in found.text and "[" not in found.text


def test_synthetic_images_only_have_a_column_of_their_own(tmp_path):
    found = written(tmp_path, pool_of([0.5]), accuracy_synthetic_only={"vanilla": 0.5123, "final": 0.6234})
    assert "Trained on With real images Synthetic images only Points over real only Real Synthetic" in found.text
    assert "Real images only 79.5 % – – 4 0" in found.text
    assert "Real + plain synthetic 88.2 % 51.2 % +8.7" in found.text
    assert "Final (utilgen) 89.2 % 62.3 % +9.7" in found.text


def test_text_from_data_is_escaped(tmp_path):
    real = replace(real_images(), class_names=(EVIL, EVIL))
    pool, whole = whole_run(tmp_path)
    pool = replace(pool, records=tuple(replace(record, prompt=EVIL) for record in pool.records))
    (tmp_path / "config.json").write_text('{"</script><script>alert(1)</script>": 1}')
    data = replace(
        whole, class_names=real.class_names, real_ids=[EVIL] * 4, attributes=[(EVIL, EVIL, 0.5, 0.5)],
        flops={EVIL: 1.0}, changed=[(EVIL, EVIL, EVIL)], inputs={EVIL: EVIL}, command=EVIL,
    )  # fmt: skip
    row = {"class": EVIL, "word": EVIL, "images": 7, "weight": 0.25}
    found = written(
        tmp_path, pool, data, method=EVIL, dataset=EVIL, seconds={EVIL: 1.0}, versions={EVIL: EVIL}, words=[row]
    )
    scripts = found.all("script")
    assert len(scripts) == 4 and [attributes for attributes in scripts if not attributes.get("type")] == [{}]
    assert found.blocks["code"] == html.asset("gallery.js")
    assert found.text.count("alert(") >= 15
    assert EVIL in found.index["classes"] and EVIL in found.index["prompts"] and EVIL in found.index["real"]["id"]
    assert "<" not in found.blocks["gallery-index"]
    assert not {name for _, attributes in found.elements for name in attributes if name.startswith("on")}


def test_the_page_loads_nothing_and_runs_no_script_but_its_own(tmp_path):
    found = written(tmp_path, *whole_run(tmp_path))
    assert not found.all("link") and not any(script.get("src") for script in found.all("script"))
    assert all(image["src"].startswith("data:image/") for image in found.all("img"))
    (policy,) = [meta["content"] for meta in found.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data: blob:;") and "script-src 'sha256-" in policy
    style = html.asset("page.css")
    assert "url(" not in style and "@import" not in style and "<" not in style
    code = html.asset("gallery.js")
    assert not re.search(r"innerHTML|fetch\(|eval\(|https?:", code) and "</" not in code


def test_an_earlier_page_stays_when_writing_fails(tmp_path, monkeypatch):
    written(tmp_path)
    before = (tmp_path / "report" / "index.html").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, seed=4)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    assert (tmp_path / "report" / "index.html").read_bytes() == before
