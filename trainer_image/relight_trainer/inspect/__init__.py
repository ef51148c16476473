"""What is in a file of training state, without torch, without running its code, and in little memory.

    read(path) -> Contents                         .pt/.pth(.tar), safetensors, DCP, Hugging Face and Relight folders
    Contents.tensors() -> [(name, TensorRef), ...]     where their bytes lie; nothing is read before it is asked for
    statistics(ref) -> Statistics                  norm, extremes, NaN and Inf counts, in chunks
    report(contents, ...) -> dict                  JSON-able; text(report) -> str
    compare(a, b) -> Comparison
    weights(contents, key=, ema=) -> [(name, TensorRef), ...]

Imports numpy and the standard library only: torch alone takes more memory than this may, and seconds.
"""

from relight_trainer.inspect.contents import Contents, Opaque, TensorRef, Unreadable, WrongInput
from relight_trainer.inspect.reader import read

__all__ = ["Contents", "Opaque", "TensorRef", "Unreadable", "WrongInput", "read"]
