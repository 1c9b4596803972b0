import numpy as np
import pytest

from utilgen_jax.config.schema import GLYPH_PHRASES
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining.vocabulary import PHRASES
from utilgen_jax.prompts.attributes import PhraseGroups

GROUPS = PhraseGroups.parse(["thin|bold", "small|large|huge"])


def test_prompts_are_said_and_read():
    options = np.array([[0, 0], [1, 0], [2, 3]])
    prompts = [GROUPS.say("a photo of a cat", row) for row in options]
    assert prompts == ["a photo of a cat", "a photo of a cat, thin", "a photo of a cat, bold, huge"]
    np.testing.assert_array_equal([GROUPS.read(prompt) for prompt in prompts], options)
    expected = [[1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1]]
    np.testing.assert_array_equal(GROUPS.one_hot(options), expected)


def test_options_are_drawn_by_their_chances():
    chances = GROUPS.even_chances(0.6)
    np.testing.assert_allclose(chances, [0.4, 0.3, 0.3, 0.4, 0.2, 0.2, 0.2])
    options = GROUPS.draw(chances, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(GROUPS.one_hot(options).mean(0), chances, atol=0.02)
    # Groups are drawn independently.
    assert abs(np.corrcoef(options[:, 0] == 0, options[:, 1] == 0)[0, 1]) < 0.03


def test_weights_on_options_are_other_chances():
    chances = GROUPS.even_chances(0.6)
    logits = np.array([0.5, -1.0, 0.0, 2.0, 0.0, 0.3, -0.4])
    options = GROUPS.draw(chances, 40_000, np.random.default_rng(1))
    one_hot = GROUPS.one_hot(options)
    weights = np.exp(one_hot @ logits)
    # What is drawn by the old chances and weighed looks as if drawn by the new ones.
    expected = (weights[:, None] * one_hot).sum(0) / weights.sum()
    np.testing.assert_allclose(GROUPS.reweighted(chances, logits), expected, atol=0.02)
    np.testing.assert_allclose(GROUPS.reweighted(chances, np.zeros(7)), chances)


@pytest.mark.parametrize("texts", [(), ("thin|",), ("thin|bold", "bold|large"), ("thin, very|bold",)])
def test_groups_that_cannot_be_read_back_are_refused(texts):
    with pytest.raises(InputError, match="generator.phrases"):
        PhraseGroups.parse(texts)


def test_the_default_phrases_are_the_glyph_worlds():
    assert PhraseGroups.parse(GLYPH_PHRASES).groups == tuple(PHRASES.values())
