"""weightsDigest, against numpy and hashlib alone."""

import hashlib

import numpy as np
import pytest
import torch

from relight_trainer.checkpoint import weights_digest


def test_it_is_the_documented_sha256():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(108.0).reshape(4, 3, 3, 3))
        model[0].bias.fill_(-0.0)
    ours = weights_digest([*model.named_buffers(), *model.named_parameters()])
    expected = {
        "0.bias": ("float32", "4", np.full(4, -0.0, "<f4")),
        "0.weight": ("float32", "4,3,3,3", np.arange(108, dtype="<f4")),
        "1.bias": ("float32", "4", np.zeros(4, "<f4")),
        "1.num_batches_tracked": ("int64", "", np.zeros((), "<i8")),
        "1.running_mean": ("float32", "4", np.zeros(4, "<f4")),
        "1.running_var": ("float32", "4", np.ones(4, "<f4")),
        "1.weight": ("float32", "4", np.ones(4, "<f4")),
    }
    text = b"".join(
        name.encode() + b"\0" + dtype.encode() + b"\0" + shape.encode() + b"\0" + values.tobytes()
        for name, (dtype, shape, values) in sorted(expected.items())
    )
    assert ours == hashlib.sha256(text).hexdigest()


def test_strides_do_not_count_and_everything_else_does():
    base = torch.randn(2, 3, 4, 5)
    digest = weights_digest([("w", base)])
    assert weights_digest([("w", base.contiguous(memory_format=torch.channels_last))]) == digest
    assert weights_digest([("w", base.reshape(6, 20))]) != digest
    assert weights_digest([("v", base)]) != digest
    assert weights_digest([("w", base.view(torch.int32))]) != digest
    assert weights_digest([("w", base.nextafter(base + 1))]) != digest


def test_bfloat16_is_the_upper_half_of_float32():
    values = np.array([1.0, -2.5, 0.15625], "<f4")  # exact in bfloat16
    upper = values.view("<u2")[1::2].tobytes()
    expected = hashlib.sha256(b"w\0bfloat16\0003\0" + upper).hexdigest()
    assert weights_digest([("w", torch.tensor(values).bfloat16())]) == expected


def test_two_tensors_of_one_name_are_an_error():
    with pytest.raises(ValueError, match="'w'"):
        weights_digest([("w", torch.zeros(1)), ("w", torch.ones(1))])
