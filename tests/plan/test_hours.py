"""How often a run calls its programs, counted by hand, and the hours that this is."""

import pytest

from utilgen_jax.config import command_line
from utilgen_jax.methods import METHODS
from utilgen_jax.plan import __main__ as plan
from utilgen_jax.plan.hours import RunSize, calls, cost, num_chips, summary
from utilgen_jax.plan.methods import ALL_PROGRAMS, programs_of
from utilgen_jax.runtime.chips import CHIPS


def of(method, *settings, config="configs/cifar.py", **size):
    overrides = [(name, value) for name, value in (setting.split("=") for setting in settings)]
    problems = []
    read = command_line.read_config(f"{config}:method={method}", overrides, problems)
    return RunSize(read, **{"num_classes": 10, "num_real": 160, **size})


def counts(size, *names):
    return {name: calls(name, size) for name in names or programs_of(size.config.method)}


def test_published_protocols_come_to_these_calls():
    # 16 shots of 10 classes, 80 images a class in batches of 16: 50 batches. The classifier trains twice.
    assert counts(of("captions")) == {"sample": 50, "classifier": 6000}
    assert counts(of("datadream")) == {"lora": 10 * 200 * 16 // 8, "sample": 50, "classifier": 6000}
    # Plain images and its own.
    assert counts(of("difficulty")) == {"difficulty": 100 * 160 // 8, "sample": 100, "classifier": 6000}
    # Pools of the tokens, of two rounds, and of the refined prompts; 3,000 steps a concept of four images.
    utilgen = counts(of("utilgen"))
    assert utilgen["textual_inversion"] == 750 * 160 // 16
    assert utilgen["dpo"] == 2000 and utilgen["per_image"] == 50 and utilgen["sample"] == 200
    practice = counts(of("deliberate_practice"))
    assert practice["sample"] == 13 and practice["guided_sample"] == 38  # a quarter of 800 images, and the rest
    joint = of("joint")
    ensembles = 3 + 4 * 1
    assert counts(joint)["classifier"] == (2 + ensembles) * 3000 and counts(joint)["sample"] == 100
    assert counts(joint)["bilevel"] == joint.config.section(type(joint.config.method_sections["joint"])).steps


def test_a_class_wise_lora_takes_as_many_steps_as_its_classes_come_to():
    whole = of("datadream", "lora.per_class=False")
    assert calls("lora", whole) == 200 * 160 // 8
    assert calls("lora", of("datadream", num_classes=20, num_real=320)) == 20 * 400


def test_a_pool_that_fills_classes_up_holds_what_is_missing():
    size = of("vanilla", "pool.fill_to=100")
    assert size.pool_size == 10 * 100 - 160 and calls("sample", size) == 53


@pytest.mark.parametrize("name", METHODS)
def test_every_program_of_every_method_is_called(name):
    assert all(number > 0 for number in counts(of(name)).values())
    assert calls("unet", of(name)) > 0


def test_the_summary_tells_chips_and_gpus():
    text = summary(3600 * 0.4 * 312e12, "v5e:2x2", 10, of("captions"))
    told = "v5e:2x2 10 h, $48; one A100 1 h, $4; one H100 0.32 h, $3"
    assert text.endswith(f"449.3 PFLOP; at 40% of the peak, on demand: {told}")
    assert text.startswith("10 classes, 160 labelled images, pools of 800: ")
    assert set(ALL_PROGRAMS) >= set(programs_of("captions"))


@pytest.mark.parametrize(
    ("flops", "moved", "hours", "bottleneck"),
    [(0.4 * 16 * 197e12, 100e9, 2, "products"), (0.4 * 16 * 197e12, 2 * 819e9, 4, "memory")],
)
def test_a_program_takes_the_time_of_its_products_or_of_its_bytes(flops, moved, hours, bottleneck):
    found = cost(7200, flops, moved, CHIPS["v5e"], 16)
    assert (found.hours, found.bottleneck) == (pytest.approx(hours), bottleneck)


def test_chips_of_a_topology():
    assert [num_chips(name) for name in ("v5e:1x1", "v5e:4x4", "v4:2x2x4", "v5e:16x16")] == [1, 16, 16, 256]


def test_labelled_images_have_to_be_told_where_the_config_takes_all(capsys):
    argv = ["plan", "--config=configs/cifar.py", "--topology=v5e:2x2", "--config.data.shots=0"]
    assert plan.main(argv) == 2
    assert "--num_images: say how many labelled images there are" in capsys.readouterr().err
