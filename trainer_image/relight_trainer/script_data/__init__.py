"""The data of a script that brings its own loader: where training stands in it, and whether it repeats.

A resumed script must be given the batches that it has not been trained on, with the random numbers that they would have
had. Three ways lead there (`ways.Way`): by index, by the loader's own state, by reading again.
"""

from relight_trainer.script_data.batches import ScriptData
from relight_trainer.script_data.errors import BadLoader, DataDiffers
from relight_trainer.script_data.lengths import checked_counts, length_of

__all__ = ["BadLoader", "DataDiffers", "ScriptData", "checked_counts", "length_of"]
