import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.data.subset import read_class_file
from utilgen_jax.errors import InputError

NAMES = ("n01440764", "n01443537", "n01484850", "n01491361")
TEXT = "n01491361\ttiger shark\n\nn01443537 goldfish, Carassius auratus\n"


@pytest.fixture
def data(tmp_path):
    """An image folder of four classes with three train and two test images each; grey levels differ."""
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(NAMES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (4, 4), 50 * label + number).save(folder / f"{number}.png")
    (tmp_path / "words.txt").write_text(TEXT)
    fields = dict(source="imagefolder", path=str(tmp_path), image_size=4, channels=1)
    return ConfigDict(fields | dict(class_names=(), classes_file="", max_classes=0, exclude=""))


def test_the_files_classes_are_kept_with_its_words(data):
    data.classes_file = f"{data.path}/words.txt"
    sources = load_source(data)
    for source, split, count in ((sources.train, "train", 3), (sources.test, "test", 2)):
        assert source.class_names == ("goldfish", "tiger shark")
        np.testing.assert_array_equal(source.labels, [0] * count + [1] * count)
        assert source.labels.dtype == np.int32
        assert source.ids[0] == f"{split}/n01443537/0.png" and source.ids[-1] == f"{split}/n01491361/{count - 1}.png"
    np.testing.assert_array_equal(sources.train.read([4, 1])[:, 0, 0, 0], [151, 51])
    split = few_shot(sources, shots=2, seed=0)
    np.testing.assert_array_equal(split.real.images[:, 0, 0, 0] // 50, np.array([1, 3])[split.real.labels])
    assert len(split.test) == 4


def test_the_first_classes_are_kept(data):
    data.update(class_names=("tench", "goldfish", "shark", "tiger shark"), max_classes=2)
    sources = load_source(data)
    assert sources.train.class_names == sources.test.class_names == ("tench", "goldfish")
    assert len(sources.train.labels) == 6 and len(sources.test.labels) == 4
    data.max_classes = 9
    assert len(load_source(data).train.class_names) == 4
    data.max_classes = 1
    with pytest.raises(InputError, match="needs at least two classes"):
        load_source(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764 tench\nn09999999 bird", "line 2: the data set has no class 'n09999999'; its first is 'n01440764'"),
        ("n01440764", "line 1: no name follows 'n01440764'"),
        ("n01440764 , tench", "line 1: no name follows 'n01440764'"),
        ("n01440764 tench\nn01440764 fish", "line 2: 'n01440764' or 'fish' is in an earlier line"),
        ("n01440764 tench\nn01443537 tench", "line 2: 'n01443537' or 'tench' is in an earlier line"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_line(tmp_path, text, message):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_class_file(str(tmp_path / "words.txt"), NAMES)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="config.data.classes_file='.*nowhere.txt' cannot be read"):
        read_class_file(str(tmp_path / "nowhere.txt"), NAMES)
