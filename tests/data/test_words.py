import pytest

from utilgen_jax.data.words import class_words, have_several, split_words, word_problems


def test_an_entry_is_one_word_or_several():
    assert split_words("crane bird | construction crane") == ("crane bird", "construction crane")
    assert split_words("sea lion") == ("sea lion",)
    assert not have_several(()) and not have_several(("a", "b")) and have_several(("a", "b|c"))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((), (("n01",), ("n02",))),
        # Names of the classes, which are theirs by now.
        (("tench", "goldfish"), (("n01",), ("n02",))),
        # Names alone would be those of the data set.
        (("tench", "goldfish|carp"), (("tench",), ("goldfish", "carp"))),
        # The first classes are used.
        (("tench|trout", "goldfish|carp", "shark"), (("tench", "trout"), ("goldfish", "carp"))),
    ],
)
def test_words_of_classes(entries, expected):
    assert class_words(entries, ("n01", "n02")) == expected


def test_problems_name_the_entry_and_the_number_of_entries():
    assert word_problems(()) == word_problems(("a", "b|c", "c|b")) == []
    first, second, third = word_problems(("a| ", "b", "c|d| c", ""))
    assert first.startswith("config.data.class_names: entry 1 of 4, 'a| ': an empty word")
    assert second == "config.data.class_names: entry 3 of 4, 'c|d| c': 'c' stands there twice"
    assert third.startswith("config.data.class_names: entry 4 of 4, '': an empty word")
