from types import SimpleNamespace

import pytest

from tests.methods.fake_experiment import FakeExperiment, FakePool
from utilgen_jax.errors import InputError
from utilgen_jax.generator.config import PerImageConfig
from utilgen_jax.generator.finetune.config import DpoConfig, TextualInversionConfig
from utilgen_jax.methods import METHODS
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.utilgen import WEIGHTING, UtilGenPool
from utilgen_jax.valuation.cross_fit import WEIGHTINGS, PoolValues

TOKENS = UtilGenPool(dpo=False, prompts=False, noise=False)
MODEL = UtilGenPool(prompts=False, noise=False)
TOKEN_PROMPTS = [["token prompt"]]


def test_the_first_pool_is_of_class_tokens_learnt_beside_plain_images():
    plain = FakePool(PlainPool())
    experiment = FakeExperiment(pools={PlainPool(): plain})
    pool = TOKENS.build(experiment)
    plan = experiment.call("pools.plan", TOKEN_PROMPTS)
    assert experiment.calls == [
        experiment.call("adapters.learn_class_tokens", plain),
        experiment.call("pools.class_token_prompts"),
        plan,
        experiment.call("pools.generate", TOKENS, plan),
    ]
    assert pool.made_by == experiment.calls[-1]


def round_of_dpo(experiment, pool):
    """The calls of a round, and the pool that it ends with."""
    name = f"utilgen_dpo_{pool.round}"
    value = experiment.call("values.cross_fit", name, pool, WEIGHTING)
    adapter = experiment.call("adapters.train_dpo", MODEL, pool, f"weights {name}")
    plan = experiment.call("pools.plan", TOKEN_PROMPTS, pool.round + 1)
    generate = experiment.call("pools.generate", MODEL, plan, adapter)
    calls = [value, adapter, experiment.call("pools.class_token_prompts"), plan, generate]
    return calls, FakePool(MODEL, generate, adapter, pool.round + 1)


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_round_of_dpo_is_on_the_pool_of_the_round_before(rounds):
    pool = FakePool(TOKENS)
    experiment = FakeExperiment(DpoConfig(rounds=rounds), pools={TOKENS: pool})
    found = MODEL.build(experiment)
    expected = []
    for _ in range(rounds):
        calls, pool = round_of_dpo(experiment, pool)
        expected += calls
    assert [call for call in experiment.calls if call.step != "values.show_weight_curve"] == expected
    assert found == pool and pool.round == rounds


@pytest.mark.parametrize("dpo", [False, True])
@pytest.mark.parametrize(("prompts", "noise"), [(True, True), (True, False), (False, True)])
def test_the_instance_level_keeps_the_model_level_and_refines_each_image(dpo, prompts, noise):
    spec = UtilGenPool(dpo, prompts, noise)
    before = FakePool(UtilGenPool(dpo, False, False), None, "adapter of DPO", 2 * dpo)
    experiment = FakeExperiment(pools={before.spec: before})
    pool = spec.build(experiment)
    name = f"{spec.name}_{before.round}"
    # Without prompts of their own nothing is valued: a noise needs no weight.
    valued = [experiment.call("values.cross_fit", name, before, WEIGHTING)] if prompts else []
    models = {"models": name} if prompts else None
    refine = experiment.call("adapters.per_image", spec, models, WEIGHTING, noise)
    plan = experiment.call("pools.plan", TOKEN_PROMPTS, before.round + 1)
    assert [call for call in experiment.calls if call.step != "values.show_weight_curve"] == [
        *valued,
        refine,
        experiment.call("pools.class_token_prompts"),
        plan,
        experiment.call("pools.generate", spec, plan, "adapter of DPO", refine=refine),
    ]
    assert pool.made_by == experiment.calls[-1] and pool.round == before.round + 1


def test_weights_that_contradict_what_images_do_leave_generator_and_prompts():
    experiment = FakeExperiment(DpoConfig(rounds=1), build=True)
    contradictory = PoolValues("ones", "losses", fold_models="models", agreement=-0.2)
    experiment.values.functions["cross_fit"] = lambda name, pool, weighting: contradictory
    UtilGenPool().build(experiment)
    assert "adapters.train_dpo" not in experiment.steps
    (refine,) = [call for call in experiment.calls if call.step == "adapters.per_image"]
    assert refine.arguments["fold_models"] is None and refine.arguments["noise"]


def test_the_weight_curve_of_each_valuation_is_shown():
    experiment = FakeExperiment(DpoConfig(rounds=2))
    MODEL.build(experiment)
    shown = [call.arguments for call in experiment.calls if call.step == "values.show_weight_curve"]
    assert [(call["name"], call["pool_round"], call["values"].weights) for call in shown] == [
        ("utilgen_dpo", 0, "weights utilgen_dpo_0"),
        ("utilgen_dpo", 1, "weights utilgen_dpo_1"),
    ]


def test_the_whole_method_takes_the_papers_steps_in_the_papers_order():
    experiment = FakeExperiment(DpoConfig(rounds=1), build=True)
    _, pool, values = METHODS["utilgen"].training_data(experiment)
    generate = ["pools.class_token_prompts", "pools.plan", "pools.generate"]
    value = ["values.cross_fit", "values.show_weight_curve"]
    assert experiment.steps == [
        *("pools.class_prompts", "pools.plan", "pools.generate"),  # plain images, beside which the tokens are learnt
        *("adapters.learn_class_tokens", *generate),
        *(*value, "adapters.train_dpo", *generate),
        *(*value, "adapters.per_image", *generate),
        "values.cross_fit",
    ]
    assert experiment.calls[-1] == experiment.call("values.cross_fit", "utilgen", pool, "loss_network")
    assert pool.spec == UtilGenPool() and pool.round == 2 and values.weights == "weights utilgen"
    assert WEIGHTING == "loss_network" and WEIGHTING in WEIGHTINGS


def test_all_its_pools_hold_class_tokens_learnt_from_shots():
    specs = [UtilGenPool(dpo, prompts, noise) for dpo in (0, 1) for prompts in (0, 1) for noise in (0, 1)]
    assert all(spec.class_tokens and spec.uses_shots and not spec.attributes for spec in specs)
    assert len({spec.name for spec in specs}) == 8
    assert (TOKENS.name, MODEL.name, UtilGenPool().name) == ("class_tokens", "utilgen_dpo", "utilgen")


def test_tokens_are_learnt_without_prior_images_where_a_batch_holds_none():
    experiment = FakeExperiment(TextualInversionConfig(prior_fraction=0.0))
    TOKENS.build(experiment)
    assert experiment.calls[0] == experiment.call("adapters.learn_class_tokens", None)


def test_a_checkpoint_without_an_image_encoder_needs_a_clip_or_does_without():
    with pytest.raises(InputError, match=r"per_image\.clip: .*per_image\.clip=openai/.*per_image\.clip_weight=0"):
        UtilGenPool().check(FakeExperiment())
    UtilGenPool().check(FakeExperiment(PerImageConfig(clip_weight=0.0)))
    UtilGenPool(prompts=False).check(FakeExperiment())
    with_encoder = FakeExperiment()
    with_encoder.generator = SimpleNamespace(architecture=SimpleNamespace(image_encoder="any"))
    UtilGenPool().check(with_encoder)
    with pytest.raises(InputError, match=r"config\.per_image\.clip: .*no such folder"):
        UtilGenPool().check(FakeExperiment(PerImageConfig(clip="/nowhere/at/all")))


def test_other_images_are_weighed_by_the_fold_models_of_the_run():
    method, experiment, others = METHODS["utilgen"], FakeExperiment(), FakePool(UtilGenPool())
    values = method.predict_values(experiment, others)
    assert values.weights == "by weights utilgen" and method.has_weights and not method.has_soft_labels
    assert experiment.steps == ["values.cross_fit", "values.predict_weights"]
    assert experiment.calls[0].arguments["pool"] is experiment.pool(UtilGenPool())
