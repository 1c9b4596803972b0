import numpy as np

from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.report.words import cells, word_lines, word_table

NAMES = [("crane", "bird"), ("crane", "machine"), ("bank", "shore"), ("bank", "bench"), ("bank", "loan")]
RECORDS = [
    PoolRecord(label=label, class_name=name, word=word)
    for label, name, word in [
        (0, "crane", "bird"),
        (1, "bank", "shore"),
        (0, "crane", "machine"),
        (1, "bank", "bench"),
        (0, "crane", "bird"),
        (2, "cat", None),
    ]
]
WEIGHTS = np.array([0.2, 0.9, 0.5, 0.7, 0.6, 0.1])


def test_a_row_has_the_means_over_the_images_of_its_word():
    rows = word_table(NAMES, RECORDS, {"weight": WEIGHTS, "label_probability": None, "difficulty": 1 - WEIGHTS})
    assert [(row["class"], row["word"]) for row in rows] == NAMES
    assert [row["images"] for row in rows] == [2, 1, 1, 1, 0]
    assert [row["weight"] for row in rows] == [0.4, 0.5, 0.9, 0.7, None]
    assert [row["difficulty"] for row in rows] == [0.6, 0.5, 0.1, 0.3, None]
    assert not any("label_probability" in row for row in rows)


def test_the_columns_are_those_that_are_known():
    rows = word_table(NAMES, RECORDS, {"weight": WEIGHTS})
    headers, texts = cells(rows)
    assert headers == ["Class", "Word", "Images", "Mean weight"]
    assert texts[0] == ["crane", "bird", "2", "0.40"] and texts[-1] == ["bank", "loan", "0", "–"]
    headers, texts = cells([row | {"value": 0.25, "share": 1.0} for row in rows])
    assert headers[-2:] == ["Value", "Chosen"] and texts[0][-2:] == ["0.25", "1.00"]


def test_the_lines_name_the_most_and_the_least_useful_words():
    first, second = word_lines(word_table(NAMES, RECORDS, {"weight": WEIGHTS}))
    assert first == (
        "words by mean weight: highest bank as 'shore' 0.90, bank as 'bench' 0.70, crane as 'machine' 0.50"
    )
    assert second == "  lowest crane as 'bird' 0.40, crane as 'machine' 0.50, bank as 'bench' 0.70"


def test_where_weights_are_equal_words_are_ranked_by_what_else_is_known():
    even = {"weight": np.ones(6)}
    by_label, _ = word_lines(word_table(NAMES, RECORDS, even | {"label_probability": WEIGHTS, "difficulty": WEIGHTS}))
    assert by_label.startswith("words by mean probability of the class in the soft label: highest bank as 'shore' 0.90")
    by_difficulty, _ = word_lines(word_table(NAMES, RECORDS, even | {"difficulty": WEIGHTS}))
    assert "p(class) of the classifier of the real images: highest crane as 'bird' 0.60" in by_difficulty


def test_words_that_were_chosen_are_named():
    rows = word_table(NAMES, RECORDS, {"weight": WEIGHTS})
    shares = [1.0, 0.0, 0.5, 0.5, 0.0]
    lines = word_lines([row | {"value": 0.1, "share": share} for row, share in zip(rows, shares, strict=True)])
    assert lines[2] == "  chosen: crane as 'bird', bank as 'shore' or 'bench'"
