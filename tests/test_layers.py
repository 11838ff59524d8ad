"""One direction of imports: every import, late ones too, is of a lower layer or of the same room, and none in a circle.

The order stands here, lowest first. A module is found in the line that names it or the package that it is in.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rmadapter
import rmadapter_kernels

LAYERS = {
    "rmadapter": [
        {"errors"},
        {"commands", "files", "locks", "runtime"},
        {"config"},
        {"data"},
        {"clip"},
        {"tuners"},
        {"objectives"},
        {"methods"},
        {"step"},
        {"evaluation"},
        {"export"},
        {"serving"},
        {"training"},
        {"sweeps"},
        {"reports"},
        {"testbed"},
        {"cli", ""},  # "" is the package's own __init__: the public names
        {"train", "__main__"},  # what python -m runs
    ],
    "rmadapter_kernels": [
        {
            "calls",
            "overlap",
            "reference",
            "triton.buffers",
            "triton.devices",
            "triton.layout",
            "triton.options",
            "triton.primitives",
        },
        {
            "checks",
            "eager",
            "triton.backward_rows",
            "triton.forward",
            "triton.prepare",
            "triton.prepared",
            "triton.tuning",
        },
        {"cpu", "triton.availability", "triton.backward_weights", "triton.launch"},
        {"backends", "triton.plans"},
        {"triton.operators"},
        {"ops", "triton.dry"},
        {"functional"},
        {"module"},
        {"", "triton.__init__"},  # the public names; those of triton are its options
    ],
}
PACKAGES = {package.__name__: Path(package.__file__).parent for package in (rmadapter, rmadapter_kernels)}


def modules(package: str, root: Path) -> dict[str, ast.Module]:
    """Dotted name -> parsed source of every module of ``package``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join([package, *(part for part in parts if part != "__init__")])
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = {package: modules(package, root) for package, root in PACKAGES.items()}
ALL = {name: tree for found in MODULES.values() for name, tree in found.items()}


def imports(name: str, tree: ast.Module, known: Iterable[str] = ALL) -> Iterator[tuple[str, int]]:
    """The modules of ours that ``name`` imports, at its top or later, with the line of each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import; valid: from rmadapter..."
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                if target in known or node.module in known:
                    yield (target if target in known else node.module), node.lineno


def layer(name: str) -> tuple[int, str]:
    """The number of the layer that the module ``name`` is in, and the name that stands for it there."""
    package, _, inside = name.partition(".")
    for number, names in enumerate(LAYERS[package]):
        for found in names:
            own = found.removesuffix(".__init__")  # the package's own module alone
            if inside == own or (found == own and found and inside.startswith(f"{found}.")):
                return number, found
    raise AssertionError(f"{name} is in no layer; say in {Path(__file__).name} where it belongs")


def upward(name: str, tree: ast.Module) -> list[str]:
    """What ``name`` imports of a higher layer, or of another room of its own layer."""
    package = name.partition(".")[0]
    number, room = layer(name)
    found = []
    for target, line in imports(name, tree):
        if target.partition(".")[0] != package:
            if package == "rmadapter_kernels":
                found.append(f"{name}, line {line}: imports {target}, of the package on top of it")
            continue
        other, other_room = layer(target)
        if other > number or (other == number and other_room != room):
            found.append(f"{name}, line {line}: imports {target}, which is above it")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_upwards(package):
    found = [line for name, tree in MODULES[package].items() for line in upward(name, tree)]
    assert not found, "\n".join(found)


def test_no_imports_go_in_a_circle():
    graph = {name: {target for target, _ in imports(name, tree)} - {name} for name, tree in ALL.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    "source",
    [
        "from rmadapter.training.loop import TrainingLoop",
        "def late():\n    import rmadapter.cli",
        "def late():\n    from rmadapter.sweeps import jobs",
        "if TYPE_CHECKING:\n    from rmadapter.step.plain import RMAdapterCLIP",
        "from rmadapter import inject",
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(source):
    (line,) = upward("rmadapter.clip.towers", ast.parse(source))
    assert line.startswith("rmadapter.clip.towers, line ")


def test_one_name_stands_for_one_thing():
    """Of modules, packages and public classes within one of the two packages."""
    for package, found in MODULES.items():
        stems = Counter(name.rpartition(".")[2] for name in found if name != package)
        classes = Counter(
            node.name
            for tree in found.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        )
        twice = [name for name, count in (stems + classes).items() if count > 1]
        assert not twice, f"{package} has more than one {', '.join(twice)}"


def test_every_room_says_what_belongs_in_it():
    for package, root in PACKAGES.items():
        for folder in sorted({path.parent for path in root.rglob("*.py")}):
            name = ".".join([package, *folder.relative_to(root).parts])
            assert name in ALL, f"{folder} has no __init__.py"
            assert len((ast.get_docstring(ALL[name]) or "").split()) >= 10, f"{name}: what belongs there?"
