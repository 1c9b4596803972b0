"""Prints the extras of setup.py that a run of the main job needs, such as [tfds,caption]; nothing if it needs none.

Called by local.sh, with the arguments of the job: python launch/extras.py --config=configs/cifar.py
"""

import sys

from utilgen_jax.config.command_line import ConfigError, parse_flags, read_config
from utilgen_jax.config.schema import Config
from utilgen_jax.main import define_flags
from utilgen_jax.methods import METHODS

_MEASURED = ("glyphs", "tones")  # captioners that are no model


def extras(config: Config, workdir: str = "") -> list[str]:
    """The extras that this config needs, and a workdir in a bucket."""
    paths = (workdir, config.data.path, config.generator.checkpoint)
    wanted = [scheme for scheme in ("gs", "s3") if any(path.startswith(f"{scheme}://") for path in paths)]
    wanted += [config.data.source] if config.data.source in ("tfds", "hf") else []
    captions = config.prompts.captions
    methods = [METHODS[name] for name in (config.method, *config.baselines)]
    has_model = captions not in _MEASURED and not captions.endswith(".jsonl")
    if has_model and any(method.pool is not None and method.pool.captions for method in methods):
        wanted.append("caption")
    return wanted


def main() -> None:
    """Prints them; a command line that the job itself will refuse needs none."""
    values = define_flags()
    overrides, _ = parse_flags(values, sys.argv)
    try:
        names = extras(read_config(values["config"].value or "digits", overrides), values["workdir"].value or "")
    except ConfigError:
        return
    if names:
        print(f"[{','.join(names)}]")


if __name__ == "__main__":
    main()
