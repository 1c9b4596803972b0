"""What the commands share: reading `--config` and its overrides, the help text, and messages in place of tracebacks.

The config file is loaded and overridden here rather than by `ml_collections.config_flags`, which stops at the first
mistake with a traceback; here all of them are told at once, with the nearest valid name.
"""

import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from utilgen_jax.config import protocols
from utilgen_jax.config.console import as_message, lasting_streams
from utilgen_jax.config.files import config_names, find_config
from utilgen_jax.config.help import FULL_HELP, help_text
from utilgen_jax.config.protocols import PROTOCOLS
from utilgen_jax.config.schema import (
    FIELDS,
    Config,
    ConfigError,
    choice_problems,
    flatten,
    parse_value,
    set_field,
    unknown_field,
)
from utilgen_jax.config.validation import IN_BUCKETS, checked, validate
from utilgen_jax.errors import InputError, nearest
from utilgen_jax.runtime.buckets import bucket_problem
from utilgen_jax.runtime.compilation_cache import keep_programs
from utilgen_jax.runtime.paths import expand, is_in_bucket, is_url, is_without_home
from utilgen_jax.runtime.termination import STATUS, Terminated, sigterm_handled

PREFIX = "--config."
# Flags of any command whose values are, or may be, paths.
PATH_FLAGS = (
    "cache",
    "checkpoint",
    "configs",
    "data_path",
    "embeds",
    "image_prompt",
    "images",
    "init_image",
    "join",
    "latents",
    "lora",
    "mask_image",
    "out",
    "unet",
    "vae",
    "weights",
    "workdir",
)
# Those of them that may be in a bucket, where the command knows how.
_IN_BUCKETS = ("checkpoint", "data_path", "images", "unet", "vae", "workdir")


def common_flags(workdir_help: str | None) -> flags.FlagValues:
    """Returns the flags --config, --help and, unless its help is None, --workdir, not yet parsed."""
    values = flags.FlagValues()
    about = f"{', '.join(config_names())}, or a file such as configs/digits.py; CONFIG:VARIANT"
    flags.DEFINE_string("config", None, about, flag_values=values)
    if workdir_help is not None:
        flags.DEFINE_string("workdir", None, workdir_help, flag_values=values)
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


def parse_flags(flag_values: flags.FlagValues, argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Parses a command line into absl flags and, for a command with the flag --config, config overrides.

    Args:
        flag_values: The command's own flags; set in place.
        argv: The command line, its first entry the program.

    Returns:
        Overrides (field path, text), from `--config.a.b=text` or `--config.a.b text`; and problems, one message each.
        In the flags' paths the home folder stands for `~`.
    """
    overrides: list[tuple[str, str]] = []
    problems: list[str] = []
    if FULL_HELP not in flag_values:
        flags.DEFINE_boolean(FULL_HELP, False, "show all flags and fields, and leave", flag_values=flag_values)
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        name, equals, text = word.lstrip("-").partition("=")
        override = "config" in flag_values and word.startswith(PREFIX)
        known = word.startswith("-") and name in flag_values
        if not equals and (override or (known and not flag_values[name].boolean)):
            if not words or words[0].startswith("--"):
                problems.append(f"{word}: a value is missing; write {word}=VALUE")
                continue
            text = words.pop(0)
            word = f"{word}={text}"
        if override:
            overrides.append((name.removeprefix("config."), text))
            continue
        try:  # one word at a time, so that one wrong value does not hide the next
            unknown = flag_values(["", word], known_only=True)[1:]
        except flags.Error as error:
            problems.append(str(error))
            continue
        if not unknown:
            continue
        if not word.startswith("-"):
            problems.append(f"{word}: an argument that belongs to no flag")
            continue
        fields = f" (a config field is {PREFIX}FIELD=VALUE)" if "config" in flag_values else ""
        problems.append(f"{word}: no such flag; the nearest is --{nearest(name, flag_values)}{fields}")
        if not equals and words and not words[0].startswith("-"):
            words.pop(0)  # its value
    if flag_values[FULL_HELP].value:
        flag_values["help"].value = True
    for name in PATH_FLAGS:
        if name in flag_values:
            _expand_paths(flag_values[name], problems)
    return overrides, problems


def _expand_paths(flag: flags.Flag, problems: list[str]) -> None:
    """Puts the home folder in place of `~` in a flag's value, one path or several."""
    several = flag.value if isinstance(flag.value, list) else []
    paths = [flag.value] if isinstance(flag.value, str) else several
    problems += [f"--{flag.name}={path}: there is no such home folder" for path in paths if is_without_home(path)]
    for path in paths:
        if is_in_bucket(path) and flag.name not in _IN_BUCKETS:
            problems.append(f"--{flag.name}={path}: cannot be in a bucket; give a path on this machine")
    if isinstance(flag.value, str):
        flag.value = expand(flag.value)
    elif several:
        flag.value = [expand(path) for path in several]


def define_protocol(values: flags.FlagValues) -> None:
    """Defines the flag --protocol of a command that trains classifiers."""
    about = f"{', '.join(PROTOCOLS)}; in place of those that --config=FILE:VARIANT names"
    flags.DEFINE_list("protocol", [], about, flag_values=values)


def protocol_overrides(values: flags.FlagValues, problems: list[str]) -> list[tuple[str, str]]:
    """Returns the overrides that the flag --protocol stands for; appends what is wrong with it to `problems`."""
    names: list[str] = values["protocol"].value or []
    problems += choice_problems("protocol", names, PROTOCOLS)
    problems += [f"--protocol: {conflict}" for conflict in protocols.conflicts(names)]
    return [(path, str(value)) for name in names for path, value in PROTOCOLS.get(name, {}).items()]


def flag_settings(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Returns the values of a command's parsed flags by name, without --help and --helpfull."""
    return {name: flag_values[name].value for name in flag_values if len(name) > 1 and name not in ("help", FULL_HELP)}


def read_settings(
    usage: str,
    flag_values: flags.FlagValues,
    argv: Sequence[str],
    check: Callable[[dict[str, Any], set[str]], list[str]],
) -> dict[str, Any] | None:
    """Reads the command line of a command without a config.

    Args:
        usage: what `--help` prints before the flags.
        flag_values: the command's own flags; set in place.
        argv: the command line, its first entry the program.
        check: (flag values by name, names of the flags that are given) -> what is wrong with them.

    Returns:
        The flag values by name; None where help was asked for and printed.

    Raises:
        ConfigError: lists every problem.
    """
    _, problems = parse_flags(flag_values, argv)
    if flag_values["help"].value:
        print(help_text(usage, flag_values))
        return None
    settings = flag_settings(flag_values)
    problems += check(settings, {name for name in settings if flag_values[name].present})
    if problems:
        raise ConfigError(problems)
    return settings


def folder_problems(flag: str, folder: str | None, may_be_in_bucket: bool = False) -> list[str]:
    """Says of a flag's value, if it is given, why no folder can be made there or nothing be written into it."""
    if not folder:
        return []
    if is_url(folder):
        if not (may_be_in_bucket and is_in_bucket(folder)):
            buckets = "gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or " if may_be_in_bucket else ""
            return [f"--{flag}={folder}: give {buckets}a folder on this machine"]
        problem = bucket_problem(folder, may_be_missing=True)
        return [f"--{flag}: {problem}"] if problem else []
    try:
        problem = _folder_problem(Path(folder))
    except (OSError, ValueError) as error:  # a name that is too long or no name, a folder above that may not be entered
        problem = getattr(error, "strerror", None) or str(error)
    return [f"--{flag}: {folder} {problem}"] if problem else []


def missing_bucket_problems(flag: str, folder: str) -> list[str]:
    """Says of a folder to read why it cannot be read, where it is in a bucket."""
    problem = bucket_problem(folder) if is_in_bucket(folder) else ""
    return [f"--{flag}: {problem}"] if problem else []


def _folder_problem(folder: Path) -> str:
    for part in (folder, *folder.parents):
        if part.is_symlink() and not part.exists():
            return f"is, or lies under, a link to {os.readlink(part)}, which does not exist; give a folder"
        if part.exists() and not part.is_dir():
            return "is, or lies under, a file; give a folder"
    existing = next(part for part in (folder, *folder.parents) if part.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"cannot be written: {existing} is read-only for you; give another folder"
    return ""


def read_config(spec: str, overrides: Sequence[tuple[str, str]] = (), problems: Sequence[str] = ()) -> Config:
    """Loads `CONFIG` or `CONFIG:VARIANT`, applies the overrides and checks the result.

    Args:
        spec: Name of a config of the package, such as `cifar`, or path of a Python file with `get_config(arg='')`; and
            optionally a variant after a colon.
        overrides: (field path, text) as from `parse_flags`.
        problems: What is already known to be wrong with the command line; told with the rest.

    Returns:
        A valid config.

    Raises:
        ConfigError: Lists every problem of the command line, the variant, the overrides and the config.
    """
    problems = list(problems)
    try:
        config = _load(spec, problems)
    except InputError as error:
        raise ConfigError([*problems, str(error)]) from None
    for path, text in overrides:
        if path not in FIELDS:
            problems.append(f"--{unknown_field(path)}")
            continue
        try:
            set_field(config, path, parse_value(FIELDS[path], text))
        except InputError as error:
            problems.append(f"--{error}")
    problems += validate(config)
    if problems:
        raise ConfigError(problems)
    return checked(config)


def check_buckets(config: Config) -> None:
    """Raises ConfigError where what a config names in a bucket cannot be read."""
    places = {path: flatten(config)[path] for path in IN_BUCKETS}
    found = {path: bucket_problem(place) for path, place in places.items() if is_in_bucket(place)}
    if problems := [f"config.{path}: {problem}" for path, problem in found.items() if problem]:
        raise ConfigError(problems)


def variant_overrides(spec: str, variant: str, problems: list[str]) -> list[tuple[str, str]]:
    """The fields that a variant sets, as overrides, so that they hold whatever the spec's own variant sets.

    Args:
        spec: as of `read_config`.
        variant: of the same config; "" sets nothing.
        problems: gets what is wrong with the variant.
    """
    file = spec.partition(":")[0]
    try:
        before, now = (flatten(_load(f"{file}:{name}", found)) for name, found in (("", []), (variant, problems)))
    except InputError:  # there is no such file, as `read_config` says
        return []
    return [(path, str(value)) for path, value in now.items() if before.get(path) != value]


def _load(spec: str, problems: list[str]) -> ConfigDict:
    """Runs a config file's get_config; a bad variant becomes a problem, and what of it was good is applied."""
    name, _, variant = spec.partition(":")
    file = str(find_config(name))
    module_spec = importlib.util.spec_from_file_location("utilgen_config_file", file)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config: {file!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = _get_config(module, variant, problems)
    except InputError:
        raise
    except Exception as error:  # any mistake of the file's author: told by place, without our own frames
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == module_spec.origin]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"--config: {file}{where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config: get_config() of {file} must return the config that default_config() made")
    return config


def _get_config(module: ModuleType, variant: str, problems: list[str]) -> ConfigDict:
    try:
        return module.get_config(variant)
    except ConfigError as error:
        problems += error.problems
        return error.config or module.get_config("")


def exit_status(command: Callable[[], None], interrupted: str) -> int:
    """Runs a command and returns its exit status: 0, 2 for bad input, 130 where it was `interrupted`, which is told.

    A reader who has left, as in `--help | head`, ends no command. What else cannot be written to standard output is an
    error once all is done. Other exceptions, which are bugs, are raised. Programs that it compiles are kept.
    """
    keep_programs()  # before the command imports JAX
    with lasting_streams() as (out, _):
        try:
            command()
        except KeyboardInterrupt:
            print(f"interrupted: {interrupted}", file=sys.stderr)
            return 130
        except Exception as error:
            message = as_message(error)
            if message is None:
                raise
            return _bad_input(message)
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            return _bad_input(f"standard output cannot be written: {out.error}")
        return 0


def _bad_input(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2


def training_exit_status(
    command: Callable[[], None], interrupted: str = "the same command continues where it was last saved"
) -> int:
    """The same of a command that trains: 143 where SIGTERM has come and the state is saved, see `termination`."""
    with sigterm_handled():
        try:
            return exit_status(command, interrupted)
        except Terminated:
            print(f"terminated: all is saved; this continues: {shlex.join(sys.orig_argv)}", file=sys.stderr, flush=True)
            return STATUS
