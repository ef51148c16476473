"""A packed state comes back as it was: values, strides, aliases; and optimizers and schedulers go on alike."""

import inspect
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler, swa_utils

from relight_trainer.checkpoint import UnsupportedState, pack, unpack

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
    ),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
]


def again(state):
    return unpack(pack(state))


def bits(t):
    return t.contiguous().view(torch.uint8) if t.dim() else t.reshape(1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype):
    raw = torch.arange(256, dtype=torch.uint8) % 2 if dtype == torch.bool else torch.arange(256, dtype=torch.uint8)
    state = {"odd": torch.zeros(3, dtype=torch.uint8), "t": raw.view(dtype), "scalar": raw.view(dtype)[3].clone()}
    for name, tensor in again(state).items():
        assert tensor.dtype == state[name].dtype
        assert tensor.shape == state[name].shape
        assert torch.equal(bits(tensor), bits(state[name]))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_views_of_one_storage_share_it_again(data):
    base = torch.arange(60).to(data.draw(st.sampled_from([torch.float32, torch.int16, torch.complex128])))
    views = []
    for _ in range(data.draw(st.integers(1, 4))):
        sizes = data.draw(st.lists(st.integers(0, 4), max_size=3))
        strides = data.draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)))
        last = sum(max(n - 1, 0) * s for n, s in zip(sizes, strides, strict=True))
        views.append(base.as_strided(sizes, strides, data.draw(st.integers(0, 59 - last))))
    restored = again({"views": views})["views"]
    for old, new in zip(views, restored, strict=True):
        assert old.stride() == new.stride()
        assert torch.equal(old, new)
    # Written through one view, the others see it wherever they saw it before.
    if views[0].numel():
        for tensors in (views, restored):
            tensors[0][(0,) * tensors[0].dim()] = 99
        for old, new in zip(views, restored, strict=True):
            assert torch.equal(old, new)


def test_channels_last_keeps_its_strides_and_tied_weights_stay_tied():
    conv = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    embedding = torch.nn.Embedding(5, 4)
    state = again({"conv": conv.state_dict(), "in": embedding.weight, "out": embedding.weight})
    assert state["conv"]["weight"].stride() == conv.weight.stride()
    assert torch.equal(state["conv"]["weight"], conv.weight)
    assert state["in"].data_ptr() == state["out"].data_ptr()
    assert not state["in"].requires_grad


def test_a_slice_takes_no_more_than_its_span_along():
    whole = torch.arange(1_000_000.0)
    assert len(pack({"slice": whole[10:20]})) < 1000
    assert again({"slice": whole[10:20]})["slice"].untyped_storage().nbytes() == 40


def test_neighbours_in_one_storage_that_do_not_overlap_are_entries_of_their_own():
    flat = torch.arange(10.0)
    loaded = safetensors.torch.load(bytes(pack({"a": flat[:4], "b": flat[4:]})))
    assert torch.equal(loaded["a"], flat[:4])
    assert torch.equal(loaded["b"], flat[4:])


def test_the_container_is_a_safetensors_file_with_named_tensors():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    state = {"model": model.state_dict(), "loop": {"step": torch.tensor(3), "mask": torch.tensor([True])}}
    loaded = safetensors.torch.load(bytes(pack(state)))
    assert {name.removeprefix("model.") for name in loaded if name.startswith("model.")} == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[f"model.{name}"], tensor)
    assert loaded["loop.step"].item() == 3


def test_names_that_collide_or_cannot_be_encoded_are_kept_apart():
    state = {
        "a": {"b": torch.tensor(1)},
        "a.b": torch.tensor(2),
        "__metadata__": torch.tensor(3),
        "\ud800": torch.tensor(4),
        "": torch.tensor(5),
    }
    assert again(state) == state
    assert len(safetensors.torch.load(bytes(pack(state)))) == 5


def test_restored_tensors_own_their_memory():
    buffer = pack({"a": torch.ones(4)})
    state = unpack(buffer)
    buffer[:] = bytes(len(buffer))
    assert torch.equal(state["a"], torch.ones(4))


def test_any_buffer_of_bytes_will_do():
    packed = pack({"a": torch.ones(2), "n": (1, None)})
    for buffer in (packed, bytes(packed), memoryview(packed), torch.frombuffer(packed, dtype=torch.uint8)):
        assert unpack(buffer)["n"] == (1, None)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.eye(2).to_sparse(), "only dense tensors"),
        (torch.zeros(2, device="meta"), "only dense tensors"),
        (torch.zeros(2, dtype=torch.complex64).conj(), "resolve_conj"),
    ],
)
def test_a_tensor_without_plain_memory_is_an_error_that_names_its_path(tensor, message):
    with pytest.raises(UnsupportedState, match=rf"^model\.weight: .*{message}"):
        pack({"model": {"weight": tensor}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**40),
        safetensors.torch.save({"a": torch.ones(2)}),
        bytes(pack({"a": torch.ones(9)}))[:-1],
    ],
)
def test_bytes_that_are_no_packed_state_are_an_error(data):
    with pytest.raises(ValueError, match="not a"):
        unpack(data)


# ---- optimizers and schedulers


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = torch.nn.Parameter(torch.randn(4, 6, generator=generator))
        self.kernel = torch.nn.Parameter(
            torch.randn(2, 3, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
        )
        self.scalar = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self):
        return sum(torch.cos(p).sum() + (p**2).mean() for p in self.parameters())


class Matrices(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))

    def forward(self):
        return torch.cos(self.matrix).sum()


class Sparse(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(6, 3, sparse=True)
        torch.nn.init.constant_(self.table.weight, 0.5)

    def forward(self):
        return torch.cos(self.table(torch.tensor([1, 3, 3]))).sum()


OPTIMIZERS = {
    "ASGD": {"lr": 0.1, "t0": 2},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "LBFGS": {"lr": 0.1, "max_iter": 3},
    "Muon": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "SparseAdam": {},
}


def make(name, kwargs):
    # LBFGS itself cannot take a channels_last gradient.
    model = {"Muon": Matrices, "LBFGS": Matrices, "SparseAdam": Sparse}.get(name, Net)()
    return model, getattr(torch.optim, name)(model.parameters(), **kwargs)


def advance(model, optimizer, steps):
    def closure():
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_all_of_torchs_optimizers_are_tested():
    known = {n for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)}
    assert known - {"Optimizer"} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_same_next_steps_after_a_round_trip(name):
    model, optimizer = make(name, OPTIMIZERS[name])
    advance(model, optimizer, 5)
    state = again({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, resumed = make(name, OPTIMIZERS[name])
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        for p, q in zip(group["params"], resumed.param_groups[0]["params"], strict=True):
            for key, value in optimizer.state[p].items():
                if isinstance(value, torch.Tensor):
                    assert resumed.state[q][key].stride() == value.stride()
    advance(model, optimizer, 8)
    advance(other, resumed, 8)
    for p, q in zip(weights(model), weights(other), strict=True):
        assert torch.equal(p, q)


def halve(_):
    return 0.5


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7, 7, 9]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=7),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=9),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=11),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, scale_fn=halve, scale_mode="iterations"),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.MultiStepLR(o, [1, 3])], milestones=[6]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.MultiStepLR(o, [2, 8]), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=9),
}


def test_all_of_torchs_schedulers_are_tested():
    known = {
        name
        for name, c in (*vars(lr_scheduler).items(), *vars(swa_utils).items())
        if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)
    }
    assert known - {"LRScheduler", "_LRScheduler"} == set(SCHEDULERS)


@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step.*:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_gives_the_same_next_rates_after_a_round_trip(name):
    def make_both():
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.1}], momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    def rates(optimizer, scheduler, steps):
        seen = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen.append(optimizer.param_groups[0]["lr"])
        return seen

    optimizer, scheduler = make_both()
    rates(optimizer, scheduler, 5)
    state = again({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    other, resumed = make_both()
    other.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["scheduler"])
    assert rates(other, resumed, 8) == rates(optimizer, scheduler, 8)
