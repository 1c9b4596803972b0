"""The READMEs tell the truth: their Python runs, their tables are those of the kept runs, commands and links exist."""

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest
from setuptools import find_packages

from utilgen_jax.compare.curve import curve_tables
from utilgen_jax.compare.join import PLAN_FIELDS
from utilgen_jax.compare.regimes import regime_table
from utilgen_jax.compare.statistics import Run, of_synthetic_only
from utilgen_jax.compare.tables import tables
from utilgen_jax.config.command_line import read_config
from utilgen_jax.config.schema import FIELDS, RENAMED, VARIANTS, diff_configs, flatten, from_json
from utilgen_jax.methods import METHODS
from utilgen_jax.report import format_markdown_table, format_table
from utilgen_jax.report.summary import UPDATE_NOTE

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FOLDERS = ("configs", "launch", "colabs", "utilgen_jax", "tests")
READMES = [README, *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in READMES}
DOCTESTS = [name for name, text in TEXTS.items() if ">>> " in text]

# (kept runs, README, which of the tables that `compare` makes of them stand there)
KEPT = [
    ("configs/results/digits.json", "configs/README.md", (0, 1)),
    ("configs/results/pneumoniamnist.json", "configs/README.md", (0,)),
    ("utilgen_jax/methods/results/ablation_utilgen.json", "utilgen_jax/methods/README.md", (0,)),
]


def kept_runs(file: str) -> list[Run]:
    return [Run(**entry) for entry in json.loads((ROOT / file).read_text(encoding="utf-8"))["runs"]]


def commands(text: str) -> list[list[str]]:
    """The command lines in a README's ```bash blocks, split as a shell does."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    return [words for line in blocks.splitlines() if (words := shlex.split(line, comments=True))]


def module_commands() -> list[tuple[str, list[str]]]:
    """(module, its arguments) of each `python -m utilgen_jax...` in a ```bash block of any README."""
    found = []
    for text in TEXTS.values():
        for words in commands(text):
            if "-m" in words and "python" in words:
                place = words.index("-m")
                found.append((words[place + 1], words[place + 2 :]))
    return [(module, words) for module, words in found if module.startswith("utilgen_jax")]


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCTESTS)
def test_the_examples_in_python_do_what_they_say(name: str):
    results = doctest.testfile(str(ROOT / name), module_relative=False)
    assert results.attempted and not results.failed


def test_ones_own_training_loop_has_an_example():
    assert "utilgen_jax/bilevel/README.md" in DOCTESTS


@pytest.mark.parametrize(("file", "name", "parts"), KEPT)
def test_tables_of_results_are_those_of_the_kept_runs(file: str, name: str, parts: tuple[int, ...]):
    runs = kept_runs(file)
    methods = [method for method in METHODS if any(run.method == method for run in runs)]
    found = tables(runs, methods, format_markdown_table)
    for part in parts:
        assert found[part] in TEXTS[name], f"{name} should have:\n{found[part]}"


def test_the_tables_of_the_pools_size_are_those_of_the_kept_runs():
    runs = kept_runs("configs/results/digits_pool_size.json")
    methods = [method for method in METHODS if any(run.method == method for run in runs)]
    for column in (runs, of_synthetic_only(runs)):
        (table, *_) = curve_tables(column, methods, format_markdown_table)
        assert table in TEXTS["configs/README.md"], f"configs/README.md should have:\n{table}"


def test_the_tables_of_utilgens_own_protocol_are_those_of_the_kept_runs():
    runs, methods = kept_runs("configs/results/digits_5x_utilgen.json"), ["real", "vanilla", "utilgen"]
    only = tables(of_synthetic_only(runs), methods, format_markdown_table)
    for table in (only[0], only[1], tables(runs, methods, format_markdown_table)[1]):
        assert table in TEXTS["configs/README.md"], f"configs/README.md should have:\n{table}"


def test_the_tables_of_five_images_to_a_real_one_are_those_of_the_kept_runs():
    runs = kept_runs("configs/results/digits_5x.json")
    methods = [method for method in METHODS if any(run.method == method for run in runs)]
    for column, parts in ((runs, (0, 1)), (of_synthetic_only(runs), (0, 1, -1))):
        found = tables(column, methods, format_markdown_table)
        for part in parts:
            assert found[part] in TEXTS["configs/README.md"], f"configs/README.md should have:\n{found[part]}"
    assert found[0] in TEXTS["README.md"], f"README.md should have:\n{found[0]}"


REGIMES = ("50x", "5x", "polysemy", "long_tail", "label_noise")


def test_the_regime_map_is_that_of_the_kept_runs():
    runs = {regime: kept_runs(f"configs/results/regimes/{regime}.json") for regime in REGIMES}
    table = regime_table(runs, ["real", "vanilla", "saflex", "joint"], format_markdown_table)
    assert table in TEXTS["configs/README.md"], f"configs/README.md should have:\n{table}"


PUBLISHED = ("polysemy", "long_tail", "label_noise")


def test_the_regime_map_of_the_other_methods_is_that_of_the_kept_runs():
    runs = {regime: kept_runs(f"configs/results/regimes_published/{regime}.json") for regime in PUBLISHED}
    methods = [method for method in METHODS if any(run.method == method for run in runs["polysemy"])]
    table = regime_table(runs, methods, format_markdown_table)
    assert table in TEXTS["configs/README.md"], f"configs/README.md should have:\n{table}"


@pytest.mark.parametrize(
    ("file", "config", "overrides"),
    [
        *((f"configs/results/regimes/{regime}.json", f"configs/digits.py:{regime}", []) for regime in REGIMES),
        *(
            (f"configs/results/regimes_published/{regime}.json", f"configs/digits.py:{regime}", [])
            for regime in PUBLISHED
        ),
        ("configs/results/digits.json", "configs/digits.py:images=100", []),
        ("configs/results/digits_5x.json", "configs/digits.py:5x", []),
        ("configs/results/digits_5x_utilgen.json", "configs/digits.py:5x", []),
        ("configs/results/digits_pool_size.json", "configs/digits.py:images=100", []),
        ("utilgen_jax/methods/results/ablation_utilgen.json", "configs/digits.py:images=100", []),
        (
            "configs/results/pneumoniamnist.json",
            "configs/pneumoniamnist.py:pretrained,images=100",
            [("data.path", "pneumoniamnist.npz"), ("classifier.width", "16"), ("classifier.steps", "200")],
        ),
    ],
)
def test_kept_runs_are_of_their_config(file: str, config: str, overrides: list[tuple[str, str]]):
    now = flatten(read_config(str(ROOT / config), overrides, []))
    content = json.loads((ROOT / file).read_text(encoding="utf-8"))
    before = from_json(json.dumps(content["config"])) | {path: now[path] for path in PLAN_FIELDS if path in now}
    # The sections of methods that have changed since; the READMEs say whose rows are old.
    changed = tuple(f"config.{section}." for section in ("valuation", "joint", "ensemble", "saflex"))
    assert [line for line in diff_configs(before, now) if not line.startswith(changed)] == []


def test_the_output_of_the_main_job_is_laid_out_as_it_is_printed():
    text = TEXTS["README.md"]
    cell = r" +([\d.]+%|–)"
    found = re.search(
        rf"^real images only +20 +0{cell}{cell}\n\+ plain.*{cell}{cell}\n.*{cell}{cell}\n\n{UPDATE_NOTE}: ", text, re.M
    )
    assert found is not None
    cells = found.groups()
    rows = [
        [METHODS[method].title, 20, synthetic, *cells[2 * place : 2 * place + 2]]
        for place, (method, synthetic) in enumerate((("real", 0), ("vanilla", 500), ("joint", 500)))
    ]
    printed = format_table(rows, ["training set", "real", "synthetic", "with real images", "synthetic images only"])
    assert printed in text, f"README.md should have:\n{printed}"


def test_the_readme_fits_on_some_pages():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 220
    assert [line for line in lines if len(line) > 120] == []


def test_the_readme_names_every_method_and_command():
    text = TEXTS["README.md"]
    for method, entry in METHODS.items():
        assert entry.only_in_ablations or f"`{method}`" in text, method
    package = ROOT / "utilgen_jax"
    runnable = {path.parent.name for path in package.glob("*/__main__.py")}
    runnable |= {path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    for command in runnable:
        assert f"| `{command}` |" in text, command


def test_the_files_of_methods_exist():
    files = re.findall(r"\| `(\w+\.py)` \|$", TEXTS["README.md"], re.M)
    assert len(files) > 5
    assert [file for file in files if not (ROOT / "utilgen_jax/methods" / file).is_file()] == []


@pytest.mark.parametrize("name", TEXTS)
def test_commands_exist(name: str):
    text = TEXTS[name]
    for module in set(re.findall(r"python3? -m ((?:utilgen_jax|tests)\.[\w.]*\w)", text)) - {"utilgen_jax.NAME"}:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for script in re.findall(r"\bbash ([\w./]+\.sh)", text):
        assert (ROOT / script).is_file(), script
    for paths in re.findall(r"\bpytest ((?:tests/[\w./]+ ?)+)", text):
        for path in paths.split():
            assert (ROOT / path).exists(), path


def test_flags_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "utilgen_jax").rglob("*.py"))
    given = {
        word.removeprefix("--").partition("=")[0]
        for _, words in module_commands()
        for word in words
        if word.startswith("--")
    }
    flags = {"run" if flag == "norun" else flag for flag in given if re.fullmatch(r"[a-z_]+", flag)}
    assert {"config", "workdir", "against", "weightings"} <= flags
    of_fields = {path.rpartition(".")[2] for path in FIELDS}  # `finetune` makes flags of them
    assert [flag for flag in sorted(flags - of_fields) if f'"{flag}"' not in sources] == []


def test_benchmarks_exist():
    named = {words[0] for module, words in module_commands() if module == "utilgen_jax.bench"}
    (table,) = re.findall(
        r"^BENCHMARKS\b[^=]*= \{(.*?)\}$", (ROOT / "utilgen_jax/bench/__main__.py").read_text(), re.M | re.S
    )
    assert named == set(re.findall(r'"(\w+)"', table))


def configs_in_commands() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """(FILE.py:VARIANT, overrides) of each command with a --config in any README, and of each one named in the text."""
    found = set()
    in_text = [
        [word] for text in TEXTS.values() for word in re.findall(r"`(--config=configs/[^`\s]+\.py[^`\s]*)`", text)
    ]
    for words in [words for _, words in module_commands()] + in_text:
        pairs = [word.removeprefix("--config").partition("=") for word in words if word.startswith("--config")]
        given = {name.removeprefix("."): value for name, _, value in pairs}
        spec = given.pop("", None)
        if spec and not spec.endswith(("=NAME", ":VARIANT", "=sdedit")):
            found.add((spec, tuple(given.items())))
    return sorted(found)


@pytest.mark.parametrize(("spec", "overrides"), configs_in_commands())
def test_configs_in_commands_are_valid(spec: str, overrides: tuple[tuple[str, str], ...]):
    spec = str(ROOT / spec) if spec.startswith("configs/") else spec
    read_config(spec, [("data.path", "somewhere"), *overrides])


def test_overrides_in_the_text_name_fields():
    named = {name for text in TEXTS.values() for name in re.findall(r"--config\.(\w+(?:\.\w+)?)", text)}
    # The method of utilgen_jax/README.md is not there until its reader adds it, see test_package_readme.py.
    assert len(named) > 5 and named - {"section.field", "sdedit.strength"} <= set(FIELDS)


def described_sections() -> set[str]:
    """The sections of the config that configs/README.md has in its table."""
    (table,) = re.findall(r"^\| section \|.*\n\|.*\n((?:\|.*\n)+)", TEXTS["configs/README.md"], re.M)
    return {section for row in table.splitlines() for section in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_fields_in_the_text_exist():
    sections = described_sections()
    named = {pair for text in TEXTS.values() for pair in re.findall(r"`(\w+)\.(\w+)(?:=[^`]*)?`", text)}
    fields = {f"{section}.{field}" for section, field in named if section in sections and field != "py"}
    assert len(fields) > 5 and fields <= set(FIELDS)


def test_the_configs_are_described():
    text = TEXTS["configs/README.md"]
    assert [path.name for path in (ROOT / "configs").glob("*.py") if f"`{path.name}`" not in text] == []
    assert [name for name in VARIANTS if f"`{name}`" not in text] == []


def test_the_changelog_tells_how_fields_were_renamed():
    (table,) = re.findall(r"^Config fields.*\n\n\|.*\n\|.*\n((?:\|.*\n)+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    told = {}
    for row in table.splitlines():
        before, now = (re.findall(r"`([\w.]+)(?:\.\*)?`", cell) for cell in row.split("|")[1:3])
        told |= dict(zip(before, now, strict=True))
    sections = {path.partition(".")[0] for path in FIELDS}
    assert not set(told) & ({*FIELDS} | sections)
    assert set(told.values()) <= {*FIELDS} | sections
    assert dict(RENAMED).items() <= told.items()


def test_parts_of_methods_exist():
    parts = set(re.findall(r"`((?:utilgen|joint|vanilla)_[a-z_]+)`", TEXTS["utilgen_jax/methods/README.md"])) - {
        "utilgen_jax"
    }
    assert parts and parts <= set(METHODS)


def test_every_section_of_the_config_is_described():
    undescribed = {"log_every_steps", "checkpoint_every_minutes"}
    assert described_sections() | undescribed == {path.partition(".")[0] for path in FIELDS}


def test_a_pretrained_generator_is_looked_for_where_the_commands_write_it():
    out = {word for module, words in module_commands() if module.endswith("pretraining") for word in words}
    spec = str(ROOT / "configs/pneumoniamnist.py:pretrained")
    checkpoint = read_config(spec, [("data.path", "somewhere")]).generator.checkpoint
    assert f"--out={checkpoint}" in out


def links(name: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", TEXTS[name])
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("name", TEXTS)
def test_links_resolve(name: str):
    for link in links(name):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_reference_links_are_defined():
    text = TEXTS["README.md"]
    assert set(re.findall(r"\[(\d{4}\.\d{5})\] ", text)) == set(re.findall(r"^\[(\d{4}\.\d{5})\]: https", text, re.M))


def test_kept_runs_and_figures_are_shown_and_not_packaged():
    kept = {path for folder in FOLDERS for path in (ROOT / folder).glob("**/results/*") if path.is_file()}
    assert kept
    texts = "".join(TEXTS.values())
    assert [path.name for path in kept if path.name not in texts] == []
    assert [package for package in find_packages(str(ROOT)) if package.endswith("results")] == []
    assets = {path.name for path in (ROOT / "utilgen_jax/assets").rglob("*") if path.is_file()}
    assert not assets & {path.name for path in kept}
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert re.search(r'package_data={"utilgen_jax": \["assets/\*\*/\*"\]}', setup)
