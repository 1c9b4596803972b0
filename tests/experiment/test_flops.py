"""Operations that a run is told to have spent."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.experiment.conftest import random_pool
from tests.models.test_unet import CONFIGS, random_inputs, torch_model, torch_output
from utilgen_jax.experiment.flops import _of_unet, spent_flops
from utilgen_jax.models.unet import UNet2DConditionModel


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "unclip", "sdxl"])
def test_a_call_of_the_unet_has_the_operations_that_torch_counts(name):
    oracle, inputs = torch_model(CONFIGS[name]), random_inputs(CONFIGS[name])
    # Of its fused attention torch counts nothing on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch_output(oracle, **inputs)
    unet = UNet2DConditionModel.from_config(dict(oracle.config))
    assert 3 * _of_unet(unet, (8, 8, 4), 7) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_training_takes_three_passes_of_each_image(make_experiment):
    experiment = make_experiment("vanilla", data__image_size=8, classifier__batch_size=10)
    # An mlp of width 8 on 8 * 8 pixels of one channel, two classes; five steps.
    forward = 2 * (64 * 8 + 8 * 8 + 8 * 2)
    spent = spent_flops(experiment, random_pool(6), num_trainings=2)
    assert spent["Training of the final classifiers"] == 3 * forward * 10 * 5 * 2
    half = spent_flops(experiment, random_pool(3), num_trainings=2)
    assert spent["UNet, to sample the pool"] == 2 * half["UNet, to sample the pool"] > 0
    assert list(spent_flops(experiment, None, 1)) == ["Training of the final classifiers"]
