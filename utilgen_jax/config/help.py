"""What --help prints, one screen with the examples first, and --helpfull: all flags and config fields."""

from __future__ import annotations

import textwrap

from absl import flags

from utilgen_jax.config import protocols
from utilgen_jax.config.schema import ALL_SECTIONS, FIELDS, VARIANTS

FULL_HELP = "helpfull"
_LONG = 40  # letters of a default that is not told
SCREEN, WIDTH = 45, 120  # lines and columns of --help


def help_text(usage: str, flag_values: flags.FlagValues) -> str:
    """Returns what --help prints, or --helpfull where that is given.

    Args:
        usage: what stands before the flags.
        flag_values: the command's parsed flags. Where there is --config, its variants and fields are told too.
    """
    is_full = FULL_HELP in flag_values and flag_values[FULL_HELP].value
    return (_full if is_full else _short)(usage.strip(), flag_values)


def _short(usage: str, flag_values: flags.FlagValues) -> str:
    """Usage and flags; where these are too many for a screen, those that the usage has, and the others' names."""
    has_config = "config" in flag_values
    names = _names(flag_values)
    room = SCREEN - usage.count("\n") - (8 if has_config else 3)
    shown = names if len(names) <= room else [name for name in names if f"--{name}" in usage or "help" in name]
    lines = [usage, "", "Flags:"]
    lines += [f"  {textwrap.shorten(_line(name, flag_values), WIDTH - 2, placeholder=' …')}" for name in shown]
    if others := [f"--{name}" for name in names if name not in shown]:
        text = f"and, told by --{FULL_HELP}: {', '.join(others)}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    if has_config:
        variants = ", ".join(f"{name}=" for name in VARIANTS)
        protocol = ", ".join(protocols.HELP)
        sections = ", ".join(ALL_SECTIONS)
        text = f"Variants, CONFIG:VARIANT,VARIANT: {variants}, runlocal, and the protocols {protocol}."
        lines += ["", *textwrap.wrap(text, WIDTH)]
        text = f"--config.FIELD=VALUE sets any of {len(FIELDS)} fields; --{FULL_HELP} tells them. Sections: {sections}."
        lines += textwrap.wrap(text, WIDTH)
    return "\n".join(lines)


def _full(usage: str, flag_values: flags.FlagValues) -> str:
    """Usage and flags; where there is --config, its variants and fields too."""
    lines = [usage, "", "Flags:", *(f"  {_line(name, flag_values)}" for name in _names(flag_values))]
    if "config" not in flag_values:
        return "\n".join(lines)
    lines += ["", "Variants, after a colon and with commas between them, and the field each sets:"]
    lines += [f"  {name}=  {path}" for name, path in VARIANTS.items()]
    lines += ["  runlocal  a small, quick run"]
    lines += ["", "Protocols, which stand there too" + (", or in --protocol:" if "protocol" in flag_values else ":")]
    lines += [f"  {f'{name}':15} {about}" for name, about in protocols.HELP.items()]
    lines += ["", "Config fields, --config.FIELD=VALUE, with their defaults before a config file changes them:"]
    section = ""
    for field in FIELDS.values():
        name = field.path.rpartition(".")[0]
        if name != section:
            section = name
            about = (ALL_SECTIONS[name].__doc__ or "").splitlines()[0].removeprefix(f"The section `{name}`: ")
            lines += ["", f"  {name}: {about[0].lower()}{about[1:]}"]
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        choices = f" ({', '.join(map(str, field.choices))})" if field.choices else ""
        lines.append(f"  {f'{field.path}={default}':45} {field.help}{choices}")
    return "\n".join(lines)


def _names(flag_values: flags.FlagValues) -> list[str]:
    return [name for name in flag_values if len(name) > 1]


def _line(name: str, flag_values: flags.FlagValues) -> str:
    """A flag, what it is for, and its default."""
    default = (flag_values[name].default_as_str or "").strip("'")
    end = "" if default in ("", "false") or len(default) > _LONG else f" (default {default})"
    return f"--{name}: {' '.join((flag_values[name].help or '').split())}{end}"
