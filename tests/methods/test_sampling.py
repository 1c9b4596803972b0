"""How a method's images are sampled: as its own section says, or the generator's."""

import pytest

from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.generator.config import GeneratorConfig, OwnSampling
from utilgen_jax.methods import METHODS, SECTIONS

OWN = {name: section for name, section in SECTIONS.items() if issubclass(section, OwnSampling)}
GENERATOR = GeneratorConfig(steps=7, guidance_scale=3.0)


@pytest.mark.parametrize(
    ("section", "method"),
    [
        ("captions", "captions"),
        ("augcond", "augcond"),
        ("lora", "datadream"),
        ("difficulty", "difficulty"),
        ("deliberate_practice", "deliberate_practice"),
    ],
)
def test_a_method_samples_as_its_paper_does_or_as_the_generator(section, method):
    pool = METHODS[method].pool
    as_given = FakeExperiment(generator=GENERATOR).config
    assert pool.sampling(as_given) == GENERATOR
    own = SECTIONS[section](sampler_steps=50, guidance_scale=1.5)
    sampling = pool.sampling(FakeExperiment(own, generator=GENERATOR).config)
    assert (sampling.steps, sampling.guidance_scale) == (50, 1.5)
    assert sampling.checkpoint == GENERATOR.checkpoint


def test_these_are_all_that_have_their_own():
    assert set(OWN) == {"captions", "augcond", "lora", "difficulty", "deliberate_practice"}
    for name in ("vanilla", "utilgen", "joint", "saflex"):
        assert METHODS[name].pool.sampling(FakeExperiment(generator=GENERATOR).config) is GENERATOR
