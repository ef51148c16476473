"""Torch's dtypes without torch: sizes, names in files, and their numbers as numpy has them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

ITEM_SIZES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "complex128": 16, "complex64": 8, "complex32": 4,
    "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
}  # fmt: skip

# The integers in which a quantized tensor is stored; what they mean is said by a scale and a zero point beside them.
QUANTIZED: Mapping[str, str] = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}

SAFETENSORS: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip

# (exponent bits, mantissa bits, bias, whether it has infinities, whether 0x80 alone is NaN)
_FLOAT8 = {
    "float8_e4m3fn": (4, 3, 7, False, False),
    "float8_e5m2": (5, 2, 15, True, False),
    "float8_e4m3fnuz": (4, 3, 8, False, True),
    "float8_e5m2fnuz": (5, 2, 16, False, True),
}


def raw_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype in which the bytes of torch's dtype `name` are carried."""
    if name in ("bfloat16", "complex32"):
        return np.dtype("<u2" if name == "bfloat16" else "<u4")
    if name.startswith("float8"):
        return np.dtype("u1")
    if name in QUANTIZED:
        return np.dtype(QUANTIZED[name]).newbyteorder("<")
    return np.dtype(name).newbyteorder("<")


def numbers(raw: Any, name: str) -> Any:
    """An array of `raw_dtype(name)` as the numbers it means."""
    if name == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if name.startswith("float8"):
        return _float8_table(name)[raw]
    if name == "complex32":
        halves = raw.reshape(-1).view(np.float16).astype(np.float32)
        return halves.view(np.complex64).reshape(raw.shape)
    return raw


@cache
def _float8_table(name: str) -> Any:
    codes = np.arange(256)
    if name == "float8_e8m0fnu":
        values = np.ldexp(1.0, codes - 127)
        values[255] = np.nan
        return values
    exponent_bits, mantissa_bits, bias, infinities, unsigned_zero = _FLOAT8[name]
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(
        exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1.0 + fraction, exponent - bias)
    ) * np.where(codes & 0x80, -1.0, 1.0)
    top = exponent == (1 << exponent_bits) - 1
    if unsigned_zero:
        values[0x80] = np.nan
    elif infinities:
        values[top & (mantissa == 0)] *= np.inf
        values[top & (mantissa != 0)] = np.nan
    else:
        values[top & (mantissa == (1 << mantissa_bits) - 1)] = np.nan
    return values
