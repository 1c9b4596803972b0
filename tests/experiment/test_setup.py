"""What a run reads before its first stage."""

from pathlib import Path

import numpy as np
import pytest

from utilgen_jax.classifier.config import synthetic_fraction
from utilgen_jax.config.command_line import read_config
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.pipeline import methods_of

DIGITS = f"{Path(__file__).parents[2] / 'configs' / 'digits.py'}:method=real"


def prepared(workdir, **data):
    config = read_config(DIGITS, [(f"data.{name}", str(value)) for name, value in data.items()])
    return set_up(config, workdir, None, methods_of(config))


def test_label_noise_changes_labels_of_shots_and_nothing_else(tmp_path):
    config = read_config(DIGITS, [("data.shots", "50")])
    clean = few_shot(load_source(config.data), shots=50, seed=0)
    noisy = prepared(tmp_path, shots=50, label_noise=0.4).split
    np.testing.assert_array_equal(noisy.real.images, clean.real.images)
    assert noisy.real.ids == clean.real.ids
    np.testing.assert_array_equal(noisy.test.labels, clean.test.labels)
    # 0.4 · 9 / 10 of 500 labels; the binomial's deviation is 0.021.
    assert 0.28 < (noisy.real.labels != clean.real.labels).mean() < 0.44


def test_label_noise_must_leave_each_class_a_shot(tmp_path):
    with pytest.raises(InputError, match=r"label_noise leaves no shot of \w+.*; take more shots"):
        prepared(tmp_path / "run", shots=1, label_noise=1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shots, expected", [(1, 0.75), (2, 0.6), (5, 0.375), (12, 0.2), (1000, 0.2)])
def test_the_fewer_the_shots_the_larger_the_synthetic_part(tmp_path, shots, expected):
    assert synthetic_fraction(shots) == pytest.approx(expected)
    if shots < 100:
        assert prepared(tmp_path, shots=shots).classifier_config.synthetic_fraction == pytest.approx(expected)


@pytest.mark.parametrize(("setting", "expected"), [("0.5", 0.5), ("1.0", 0.6)])
def test_the_synthetic_part_can_be_set_but_methods_see_the_shots(tmp_path, setting, expected):
    config = read_config(DIGITS, [("classifier.synthetic_fraction", setting)])
    experiment = set_up(config, tmp_path, None, methods_of(config))
    assert experiment.classifier_config.synthetic_fraction == pytest.approx(expected)


def test_classes_that_share_a_prompt_are_told(tmp_path, capsys, make_experiment):
    make_experiment(data__max_classes=0, data__class_names="one,two,Sea_lion,sea lion,five,six,Six,eight,nine,ten")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told == [
        "warning: 4 classes share their prompt with another class, such as 'a photo of the digit sea lion' (Sea_lion, "
        "sea lion); their synthetic images are alike; give them other names by config.data.class_names"
    ]


def test_names_that_are_no_prompts_matter_only_where_something_is_synthetic(tmp_path):
    names = ",".join(f"n0144076{digit}" for digit in range(10))
    prepared(tmp_path / "real", class_names=names)
    config = read_config(DIGITS.replace("real", "vanilla"), [("data.class_names", names)])
    with pytest.raises(InputError, match="'n01440760' is a WordNet id"):
        set_up(config, tmp_path / "vanilla", None, methods_of(config))
    assert not (tmp_path / "vanilla").exists()
