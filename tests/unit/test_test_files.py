from collections import Counter
from pathlib import Path


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by their names alone, and a run of one folder would not notice."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
