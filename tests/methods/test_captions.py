from tests.methods.fake_experiment import FakeExperiment
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.captions import CaptionPool


def test_the_captions_of_the_shots_prompt_the_images():
    experiment = FakeExperiment()
    pool = CaptionPool().build(experiment)
    plan = experiment.call("pools.plan", [["caption prompt"]])
    assert experiment.calls == [
        experiment.call("pools.caption_prompts"),
        plan,
        experiment.call("pools.generate", CaptionPool(), plan),
    ]
    assert pool.made_by == experiment.calls[-1]


def test_the_images_count_the_same():
    experiment = FakeExperiment()
    _, pool, _ = METHODS["captions"].training_data(experiment)
    assert pool.spec == CaptionPool() and CaptionPool().uses_shots
    assert experiment.calls == [experiment.call("values.uniform", "captions", pool)]
