"""Which images the two sheets of a difficulty encoder show, and where."""

import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.pool import difficulty_sheets as sheets_module
from utilgen_jax.pool.difficulty_sheets import HARD, HARD_IMAGES, MAX_CLASSES, SWEEP, difficulty_sheets

SAMPLING = SamplingConfig(steps=2, image_size=48, batch_size=3)
ADAPTER = Adapter(difficulty_encoder={})


@pytest.fixture
def generated(monkeypatch):
    """How `generate_batches` was called; each image is of one grey level, its place among its sheet's records."""
    calls = []

    def generate(sd, records, adapter, sampling, *, condition_on):
        calls.append({"sd": sd, "records": records, "adapter": adapter, "sampling": sampling, "change": condition_on})
        levels = np.arange(len(records)) / 127.5 - 1
        images = np.broadcast_to(levels[:, None, None, None], (len(records), 48, 48, 3)).astype(np.float32)
        for start in range(0, len(records), 3):
            yield images[start : start + 3]

    monkeypatch.setattr(sheets_module, "generate_batches", generate)
    return calls


def sheets(num_classes):
    names = tuple(f"class {number}" for number in range(num_classes))
    return difficulty_sheets("sd", ADAPTER, SAMPLING, names, [f"a {name}" for name in names])


def test_the_sweep_asks_each_class_for_rising_difficulties_from_one_noise(generated):
    assert list(sheets(3)) == ["difficulty_sweep", "hard_factors"]
    records = generated[0]["records"]
    assert [record.label for record in records] == [0] * 5 + [1] * 5 + [2] * 5
    assert [record.requested_difficulty for record in records] == [0.1, 0.3, 0.5, 0.7, 0.9] * 3 == [*SWEEP] * 3
    assert [record.prompt for record in records] == ["a class 0"] * 5 + ["a class 1"] * 5 + ["a class 2"] * 5
    # The same noise within a row, another one in each.
    assert [record.seed for record in records] == [0] * 5 + [1000] * 5 + [2000] * 5
    assert generated[0]["change"] is None


def test_hard_factors_are_several_hard_images_of_each_class_without_its_words(generated):
    sheets(2)
    records = generated[1]["records"]
    assert [record.label for record in records] == [0] * HARD_IMAGES + [1] * HARD_IMAGES
    assert {record.requested_difficulty for record in records} == {HARD}
    assert [record.seed for record in records] == [0, 1, 2, 3, 4, 1000, 1001, 1002, 1003, 1004]
    condition = Condition(jnp.ones((2, 4, 3)), jnp.zeros((2, 4, 3)), jnp.full((2, 6), 0.5))
    changed, start = generated[1]["change"](condition, np.arange(2))
    assert start is None
    np.testing.assert_array_equal(changed.prompt_embeds, np.zeros((2, 4, 3)))
    np.testing.assert_array_equal(changed.negative_prompt_embeds, np.zeros((2, 4, 3)))
    np.testing.assert_array_equal(changed.class_labels, np.full((2, 6), 0.5))
    pooled = condition.replace(negative_class_labels=jnp.zeros((2, 6)))  # the words' own are in the class labels
    changed, _ = generated[1]["change"](pooled, np.arange(2))
    np.testing.assert_array_equal(changed.class_labels, np.zeros((2, 6)))


def test_both_are_made_by_the_adapter_and_the_runs_sampler(generated):
    sheets(2)
    assert len(generated) == 2
    for call in generated:
        assert call["sd"] == "sd" and call["adapter"] is ADAPTER and call["sampling"] is SAMPLING


def test_rows_are_classes_and_columns_the_records_of_one(generated):
    for sheet in sheets(4).values():
        levels = np.asarray(sheet)[..., 0]
        corners = []
        for place in range(20):
            rows, columns = np.nonzero(levels == place)
            # Twice as large as the images.
            assert len(rows) == 96**2 == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            corners.append((rows.min(), columns.min()))
        tops, lefts = np.moveaxis(np.reshape(corners, (4, 5, 2)), -1, 0)
        assert (np.ptp(tops, axis=1) == 0).all() and (np.ptp(lefts, axis=0) == 0).all()
        assert (np.diff(tops, axis=0) >= 96).all() and (np.diff(lefts, axis=1) >= 96).all()


def test_rows_and_columns_have_their_titles(generated, monkeypatch):
    calls = []
    monkeypatch.setattr(
        sheets_module, "contact_sheet", lambda images, columns, **titles: calls.append((columns, titles))
    )
    sheets(2)
    (columns, of_sweep), (hard_columns, of_hard) = calls
    assert columns == 5 and hard_columns == 5
    assert of_sweep["row_titles"] == of_hard["row_titles"] == ["class 0", "class 1"]
    assert of_sweep["column_titles"] == ["s = 0.1", "s = 0.3", "s = 0.5", "s = 0.7", "s = 0.9"]
    assert not of_hard["column_titles"]


def test_of_many_classes_the_first_are_shown(generated):
    sheets(MAX_CLASSES + 3)
    for call in generated:
        assert sorted({record.label for record in call["records"]}) == list(range(MAX_CLASSES))
        assert len(call["records"]) == 5 * MAX_CLASSES
