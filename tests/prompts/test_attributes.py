import numpy as np
import pytest

from utilgen_jax.errors import InputError
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.config import GLYPH_ATTRIBUTES
from utilgen_jax.prompts.glyph_vocabulary import ATTRIBUTE_VALUES

ATTRIBUTES = PromptAttributes.parse(["thin|bold", "small|large|huge"])


def test_prompts_are_rendered_and_parsed():
    options = np.array([[0, 0], [1, 0], [2, 3]])
    prompts = [ATTRIBUTES.render("a photo of a cat", row) for row in options]
    assert prompts == ["a photo of a cat", "a photo of a cat, thin", "a photo of a cat, bold, huge"]
    np.testing.assert_array_equal([ATTRIBUTES.parse_prompt(prompt) for prompt in prompts], options)
    expected = [[1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1]]
    np.testing.assert_array_equal(ATTRIBUTES.one_hot(options), expected)


def test_options_are_drawn_by_their_probabilities():
    probabilities = ATTRIBUTES.uniform_probabilities(0.6)
    np.testing.assert_allclose(probabilities, [0.4, 0.3, 0.3, 0.4, 0.2, 0.2, 0.2])
    options = ATTRIBUTES.draw(probabilities, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(ATTRIBUTES.one_hot(options).mean(0), probabilities, atol=0.02)
    # Attributes are drawn independently.
    assert abs(np.corrcoef(options[:, 0] == 0, options[:, 1] == 0)[0, 1]) < 0.03


def test_reweighted_probabilities_match_weighted_draws():
    probabilities = ATTRIBUTES.uniform_probabilities(0.6)
    logits = np.array([0.5, -1.0, 0.0, 2.0, 0.0, 0.3, -0.4])
    options = ATTRIBUTES.draw(probabilities, 40_000, np.random.default_rng(1))
    one_hot = ATTRIBUTES.one_hot(options)
    weights = np.exp(one_hot @ logits)
    # Weighted draws from the old probabilities have the frequencies of the new ones.
    expected = (weights[:, None] * one_hot).sum(0) / weights.sum()
    np.testing.assert_allclose(ATTRIBUTES.reweighted(probabilities, logits), expected, atol=0.02)
    np.testing.assert_allclose(ATTRIBUTES.reweighted(probabilities, np.zeros(7)), probabilities)


@pytest.mark.parametrize("texts", [(), ("thin|",), ("thin|bold", "bold|large"), ("thin, very|bold",)])
def test_ambiguous_attributes_are_refused(texts):
    with pytest.raises(InputError, match="prompts.attributes"):
        PromptAttributes.parse(texts)


def test_default_attributes_are_those_of_the_glyph_domain():
    assert PromptAttributes.parse(GLYPH_ATTRIBUTES).groups == tuple(ATTRIBUTE_VALUES.values())
