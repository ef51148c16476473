"""The agent runs in images that hold nothing but Python 3.9."""

import ast
import sys
from pathlib import Path

import pytest

import relight_agent

FILES = sorted(Path(relight_agent.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_module_is_python_3_9_and_imports_the_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            names = {n.id for n in (node.left, node.right) if isinstance(n, ast.Name)}
            assert not names & {"None", "int", "str", "float", "bytes", "dict", "list", "set"}, (
                "X | Y is no type in 3.9"
            )
    assert imported <= sys.stdlib_module_names | {"relight_agent"}
