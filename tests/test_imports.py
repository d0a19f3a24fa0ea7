"""Imports run one way between the packages, as README's tree says: whoever reads one package need not read those after it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("smol_model", "smol_data", "smol_train", "data_tools", "conversion", "evaluation", "post_training", "slurm")


def imported(file: Path) -> set[str]:
    """Top names of all that a file imports, at its head and inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_no_two_packages_import_each_other() -> None:
    graph = {
        package: {name for file in (ROOT / package).rglob("*.py") for name in imported(file)} & set(PACKAGES) - {package}
        for package in PACKAGES
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, with the packages of the circle
    assert order.index("smol_data") < order.index("smol_train") < order.index("conversion") < order.index("evaluation")
    assert not graph["smol_model"] and "smol_model" not in graph["smol_data"]


def test_files_that_all_packages_share_import_none_of_them() -> None:
    shared = sorted(ROOT.glob("smol_*.py"))
    assert shared and not [file.name for file in shared if imported(file) & set(PACKAGES)]
