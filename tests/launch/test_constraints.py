"""launch/constraints.txt pins every requirement of setup.py, inside of its range, on each Python."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12")


def environment(python: str) -> dict[str, str]:
    """The markers' values on Linux with the given Python, where all extras can be installed."""
    return {
        "extra": "",
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def read_constraints(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def contradictions(requirements: list[str], constraints: list[Requirement], python: str) -> list[str]:
    """What keeps the requirements from being installed under the constraints, a line each; empty if nothing does."""
    values, found = environment(python), []
    pins: dict[str, list[Requirement]] = {}
    for pin in constraints:
        if pin.marker is None or pin.marker.evaluate(values):
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for name, several in pins.items():
        if len(several) > 1:
            found.append(f"{name} is pinned {len(several)} times")
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(values):
            continue
        chosen = pins.get(canonicalize_name(requirement.name), [])
        if not chosen:
            found.append(f"{requirement} has no pin")
        found.extend(
            f"{pin} is outside of {requirement}" for pin in chosen if version_of(pin) not in requirement.specifier
        )
    return found


def version_of(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is no pin"
    return Version(specifier.version)


@pytest.fixture
def requirements(monkeypatch) -> list[str]:
    """All requirements that setup.py hands to setuptools, those of its extras too."""
    given: dict = {}
    stand_in = SimpleNamespace(find_packages=lambda **_: [], setup=lambda **options: given.update(options))
    monkeypatch.setitem(sys.modules, "setuptools", stand_in)
    runpy.run_path(str(ROOT / "setup.py"))
    return [*given["install_requires"], *(line for extra in given["extras_require"].values() for line in extra)]


@pytest.fixture
def constraints() -> list[Requirement]:
    return read_constraints((ROOT / "launch" / "constraints.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("python", PYTHONS)
def test_the_constraints_pin_every_requirement_inside_of_its_range(requirements, constraints, python):
    assert len(requirements) > 30
    assert contradictions(requirements, constraints, python) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_jax_and_what_is_built_for_it_are_of_one_version(constraints, python):
    pins = [pin for pin in constraints if pin.marker is None or pin.marker.evaluate(environment(python))]
    versions = {canonicalize_name(pin.name): version_of(pin) for pin in pins}
    for name in ("jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt"):
        assert versions[name] == versions["jax"], name


def test_every_constraint_is_one_exact_version_without_extras(constraints):
    assert len(constraints) > 100  # of the whole closure, not only of what setup.py names
    for pin in constraints:
        assert not pin.extras, f"pip refuses a constraint with extras: {pin}"
        version_of(pin)


@pytest.mark.parametrize(
    ("requirement", "pins", "python", "found"),
    [
        ("a>=1,<2", "a==1.5", "3.11", []),
        ("a>=1,<2", "a==2.0", "3.11", ["a==2.0 is outside of a<2,>=1"]),
        ("A_b>=1", "a-b==1.0", "3.11", []),
        ("a[x]>=2", "a==1.0", "3.11", ["a==1.0 is outside of a[x]>=2"]),
        ("a>=1", "b==1.0", "3.11", ["a>=1 has no pin"]),
        ('a>=1; python_version < "3.12"', "b==1.0", "3.12", []),
        ("a>=1", 'a==1.0 ; python_version < "3.12"', "3.11", []),
        ("a>=1", 'a==1.0 ; python_version < "3.12"', "3.12", ["a>=1 has no pin"]),
        (
            "a>=1",
            'a==1.0 ; python_version < "3.12"\na==0.9 ; python_version >= "3.12"',
            "3.12",
            ['a==0.9; python_version >= "3.12" is outside of a>=1'],
        ),
        ("a>=1", "a==1.0\na==1.1", "3.11", ["a is pinned 2 times"]),
    ],
)
def test_contradictions_are_found(requirement, pins, python, found):
    assert contradictions([requirement], read_constraints(f"# a comment\n{pins}\n"), python) == found
