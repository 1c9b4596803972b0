"""The architecture holds: which folder may import which, how wide functions are, and what the package root holds."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "utilgen_jax"

# Folder or root module -> what it may import besides itself, `errors`, `types` and `fields`, which all may.
_MATH = {"runtime", "models", "diffusion", "bilevel"}
_LIBRARIES = _MATH | {"checkpoints", "data", "prompts", "generator", "classifier", "valuation", "pool", "joint"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "fields": set(),
    "runtime": set(),
    "models": {"runtime"},
    "diffusion": {"models", "runtime"},
    "bilevel": {"models", "runtime"},
    "checkpoints": {"models", "runtime"},
    "data": {"runtime"},
    "prompts": {"data", "runtime"},
    "classifier": {"bilevel", "checkpoints", "data", "models", "runtime"},
    "generator": {"bilevel", "checkpoints", "data", "diffusion", "models", "runtime"},
    "valuation": {"bilevel", "classifier", "data", "runtime"},
    "pool": {"data", "generator", "report", "runtime"},
    "joint": {"bilevel", "classifier", "data", "diffusion", "generator", "models", "runtime", "valuation"},
    "report": {"data", "pool", "runtime"},
    "methods": {"generator", "joint", "valuation", "prompts"},  # their config sections
    "config": {"classifier", "data", "generator", "methods", "pool", "prompts", "runtime", "valuation"},
    "experiment": _LIBRARIES | {"config", "methods", "report"},
    "pipeline": {"config", "experiment", "methods", "runtime"},
    "library": _LIBRARIES | {"config", "pipeline"},
    "main": {"config", "pipeline", "pretraining", "runtime"},
}
COMMANDS = (
    "bench",
    "compare",
    "evaluate",
    "export",
    "finetune",
    "generate",
    "noisy_labels",
    "plan",
    "pretraining",
    "sample",
)
LAYERS |= {name: _LIBRARIES | {"config", "experiment", "methods", "pipeline", "report"} for name in COMMANDS}
LAYERS["compare"] |= {"pretraining"}
LAYERS["report.__main__"] = LAYERS["report"] | {"config"}  # the command, which no other file imports
_EVERYWHERE = {"errors", "types", "fields"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


def room(path: Path) -> str:
    """The folder below the package, or the root module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(path: Path) -> str:
    """The key of `LAYERS` for a file."""
    own = f"{room(path)}.{path.stem}"
    return own if own in LAYERS else room(path)


def imports(path: Path) -> set[str]:
    """Dotted modules of the package that a file imports, but for those that only a type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utilgen_jax":
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "utilgen_jax"}
    return {name for name in found if name != "utilgen_jax" and _file(name)}


def _file(name: str) -> Path | None:
    base = PACKAGE.parent / name.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_go_down_only(path):
    own = room(path)
    if own == "__init__":
        assert not imports(path)
        return
    used = {name.split(".")[1] for name in imports(path)} - {own} - _EVERYWHERE
    allowed = LAYERS[layer(path)]
    assert used <= allowed, f"{own} imports {sorted(used - allowed)}"


def test_no_circle_among_modules():
    graph = defaultdict(set)
    for path in modules():
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = imports(path) - {name}
    done, path_so_far = set(), []

    def visit(name: str) -> None:
        if name in path_so_far:
            raise AssertionError(" -> ".join([*path_so_far[path_so_far.index(name) :], name]))
        if name in done:
            return
        path_so_far.append(name)
        for other in sorted(graph[name]):
            # A package's __init__ re-exports its own modules; those may import each other beside it.
            if not name.startswith(f"{other}."):
                visit(other)
        path_so_far.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def parameters() -> dict[str, int]:
    """Number of parameters of each function, methods without self."""
    found = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                found[f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"] = len(
                    [name for name in names if name not in ("self", "cls")]
                )
    return found


def test_functions_have_few_parameters():
    counts = parameters()
    assert max(counts.values()) <= 10, max(counts, key=counts.get)
    wide = sorted(name for name, count in counts.items() if count >= 7)
    assert len(wide) <= 0.02 * len(counts), "\n".join(wide)


def test_the_package_root_holds_commands_and_the_pipeline():
    found = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(found) - 1 <= 8 and "__init__.py" in found, found
