import numpy as np
import pytest

from utilgen_jax.config.schema import GLYPH_PHRASES
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining.vocabulary import PHRASES
from utilgen_jax.prompts.attributes import PromptAttributes

GROUPS = PromptAttributes.parse(["thin|bold", "small|large|huge"])


def test_prompts_are_said_and_read():
    options = np.array([[0, 0], [1, 0], [2, 3]])
    prompts = [GROUPS.say("a photo of a cat", row) for row in options]
    assert prompts == ["a photo of a cat", "a photo of a cat, thin", "a photo of a cat, bold, huge"]
    np.testing.assert_array_equal([GROUPS.read(prompt) for prompt in prompts], options)
    expected = [[1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1]]
    np.testing.assert_array_equal(GROUPS.one_hot(options), expected)


def test_options_are_drawn_by_their_probabilities():
    probabilities = GROUPS.uniform_probabilities(0.6)
    np.testing.assert_allclose(probabilities, [0.4, 0.3, 0.3, 0.4, 0.2, 0.2, 0.2])
    options = GROUPS.draw(probabilities, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(GROUPS.one_hot(options).mean(0), probabilities, atol=0.02)
    # Groups are drawn independently.
    assert abs(np.corrcoef(options[:, 0] == 0, options[:, 1] == 0)[0, 1]) < 0.03


def test_weights_on_options_are_other_probabilities():
    probabilities = GROUPS.uniform_probabilities(0.6)
    logits = np.array([0.5, -1.0, 0.0, 2.0, 0.0, 0.3, -0.4])
    options = GROUPS.draw(probabilities, 40_000, np.random.default_rng(1))
    one_hot = GROUPS.one_hot(options)
    weights = np.exp(one_hot @ logits)
    # What is drawn by the old probabilities and weighed looks as if drawn by the new ones.
    expected = (weights[:, None] * one_hot).sum(0) / weights.sum()
    np.testing.assert_allclose(GROUPS.reweighted(probabilities, logits), expected, atol=0.02)
    np.testing.assert_allclose(GROUPS.reweighted(probabilities, np.zeros(7)), probabilities)


@pytest.mark.parametrize("texts", [(), ("thin|",), ("thin|bold", "bold|large"), ("thin, very|bold",)])
def test_groups_that_cannot_be_read_back_are_refused(texts):
    with pytest.raises(InputError, match="generator.phrases"):
        PromptAttributes.parse(texts)


def test_the_default_phrases_are_the_glyph_domains():
    assert PromptAttributes.parse(GLYPH_PHRASES).groups == tuple(PHRASES.values())
