"""The figures of a plan for people: a heading, a line a program, and what to try where one does not fit."""

from collections.abc import Mapping
from typing import Any

from utilgen_jax.plan.programs import Program

_GIB = 2**30


def heading(plan: dict[str, Any]) -> str:
    """What is planned, and the names of the columns of `line`; `plan` is what the command prints as JSON."""
    least = "" if plan["full"] else ", at least, with all the recomputing that XLA can do"
    return (
        f"{plan['architecture']}: batches of {plan['batch_size']} at {plan['image_size']}x{plan['image_size']}, "
        f"{plan['dtype']}, gradient checkpointing {plan['gradient_checkpointing']}\n"
        f"on {plan['topology']}: {plan['chips']} chips (data {plan['mesh']['data']}, fsdp {plan['mesh']['fsdp']}), "
        f"{plan['available_bytes'] / _GIB:.2f} GiB for programs on each\n"
        f"a chip needs, GiB{least}: arguments + temporaries + code + the generator's other weights\n\n"
        f"{'program':8} {'needs':>7} {'':8}   {'':35} {'TFLOP':>12} {'s at peak':>10} {'calls':>7} "
        f"{'hours':>8} {'limit':8} {'compiled in':>12}"
    )


def line(name: str, row: dict[str, Any]) -> str:
    """One program's figures."""
    needed, *parts = (
        f"{row[f'{part}_bytes'] / _GIB:.2f}" for part in ("needed", "argument", "temporary", "code", "resident")
    )
    return (
        f"{name:8} {needed:>7} {'fits' if row['fits'] else 'TOO MUCH':8} = {' + '.join(parts):35} "
        f"{row['flops'] / 1e12:12.2f} {row['seconds_at_peak']:10.4f} {row['calls']:7} "
        f"{row['hours']:8.3g} {row['bottleneck']:8} {row['compile_seconds']:10.0f} s"
    )


def compiled_line(row: dict[str, Any], bandwidth: float) -> str:
    """What stands in a program that was compiled to the end, and the share of the peak that its memory allows.

    Args:
        row: its figures.
        bandwidth: bytes a second of a chip's memory.
    """
    counts = row["hlo"]
    seconds = counts["memory_bytes"] / bandwidth
    share = min(row["seconds_at_peak"] / seconds, 1.0) if seconds else 1.0
    return (
        f"{'':8} a call on a chip: {counts['kernels']} kernels, {counts['memory_bytes'] / 1e9:.2f} GB read and written "
        f"({counts['float32_bytes'] / 1e9:.2f} as float32), {counts['float32_products']} products of float32, "
        f"{counts['copies']} copies of {counts['copied_bytes'] / 1e9:.2f} GB, {counts['gathers']} gathers, "
        f"{counts['collectives']} collectives of {counts['collective_bytes'] / 1e9:.3f} GB; "
        f"{seconds:.4f} s of its memory, so at most {share:.0%} of the peak"
    )


def ways_out(plan: Mapping[str, Any], program: Program, fields: Mapping[str, Any]) -> str:
    """The settings that save memory and are not exhausted yet; those that change no result come first.

    Args:
        plan: what the command prints as JSON.
        program: that does not fit.
        fields: the config's values by path, see `config.schema.flatten`.
    """
    chips, ways = plan["chips"], {}
    if program.has_gradient and fields["generator.gradient_checkpointing"] != "blocks":
        ways["generator.gradient_checkpointing"] = "blocks"
    if program.micro_batch and (not fields[program.micro_batch] or fields[program.micro_batch] > chips):
        ways[program.micro_batch] = chips
    if fields["generator.dtype"] != "bfloat16":
        ways["generator.dtype"] = "bfloat16"
    if fields[program.batch] > chips:
        ways[program.batch] = max(fields[program.batch] // 2 // chips, 1) * chips
    told = [f"--config.{path}={value}" for path, value in ways.items()]
    if plan["mesh"]["fsdp"] < chips:
        told.append(f"--config.parallel.data=-1 --config.parallel.fsdp={chips}")
    return ", ".join([*told, "more chips"])
