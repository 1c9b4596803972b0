import math

import numpy as np
import pytest
from scipy import stats

from utilgen_jax.report import table

ROWS = [["real only", "79.5 ± 1.2", "–", 20], ["utilgen | new", "9.1", "+9.6", 1020]]
HEADERS = ["method", "accuracy", "gain", "images"]


def test_text_table():
    assert table.format_table(ROWS, HEADERS).splitlines() == [
        "method           accuracy  gain  images",
        "-------------  ----------  ----  ------",
        "real only      79.5 ± 1.2     –      20",
        "utilgen | new         9.1  +9.6    1020",
    ]


def test_markdown_table():
    assert table.format_markdown_table(ROWS, HEADERS).splitlines() == [
        "| method | accuracy | gain | images |",
        "| --- | ---: | ---: | ---: |",
        "| real only | 79.5 ± 1.2 | – | 20 |",
        "| utilgen \\| new | 9.1 | +9.6 | 1020 |",
    ]


def test_a_table_without_rows_is_its_headers():
    assert table.format_table([], ["a", "b"]).splitlines() == ["a  b", "-  -"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 cells under 2 headers"):
        table.format_table([[1, 2, 3]], ["a", "b"])


def test_mean_and_standard_deviation():
    assert table.mean_std([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    mean, std = table.mean_std([0.5])
    assert mean == 0.5 and math.isnan(std)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_paired_difference_agrees_with_scipy(confidence):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.02, 10), rng.normal(0.88, 0.02, 10)
    interval = stats.ttest_rel(a, b).confidence_interval(confidence)
    expected = ((a - b).mean(), interval.low, interval.high)
    assert table.paired_difference(a, b, confidence) == pytest.approx(expected, rel=1e-12)


def test_paired_difference_of_two_runs_in_closed_form():
    # One degree of freedom is the Cauchy distribution: its 97.5 % quantile is tan(0.475 π).
    mean, low, high = table.paired_difference([3.0, 5.0], [1.0, 1.0])
    margin = math.tan(0.475 * math.pi) * math.sqrt(2) / math.sqrt(2)
    assert (mean, low, high) == pytest.approx((3.0, 3.0 - margin, 3.0 + margin))


def test_paired_difference_at_the_edges():
    assert table.paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == (1.0, 1.0, 1.0)
    assert table.paired_difference([0.75], [0.5]) == (0.25, -math.inf, math.inf)
    for a, b in (([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="same length"):
            table.paired_difference(a, b)
