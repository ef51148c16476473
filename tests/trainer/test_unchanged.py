"""What has not changed is not copied again, and every change is in the next snapshot, however it was made."""

import ctypes
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relight_trainer.checkpoint import Snapshots, live, unpack
from relight_trainer.checkpoint import unchanged as unchanged_module
from relight_trainer.checkpoint.fold import fold
from relight_trainer.checkpoint.memory import flat
from relight_trainer.checkpoint.unchanged import LEAST
from relight_trainer.checkpoint.written import WrittenPages

pytestmark = pytest.mark.timeout(120)
LARGE = LEAST  # elements of float32: four times what is looked at
KERNEL_TELLS = WrittenPages.open() is not None
kernel_tells = pytest.mark.skipif(not KERNEL_TELLS, reason="this kernel does not tell which pages are written")


@pytest.fixture
def folder() -> Iterator[Path]:
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as path:
        yield Path(path) / "snapshots"


def opened(folder: Path) -> Snapshots:
    return Snapshots(folder, job_uid="job-1", config_hash="abc")


class Written:
    """Snapshots of a state, one a step, each compared with the state."""

    def __init__(self, folder: Path, state: dict[str, Tensor]) -> None:
        self.snapshots = opened(folder)
        self.state = state
        self.step = 0

    def write(self) -> int:
        """The bytes that were copied."""
        self.step += 1
        self.snapshots.write({"model": self.state}, generation=1, step=self.step)
        found = unpack(self.snapshots.read())["model"]
        assert found.keys() == self.state.keys()
        for name, tensor in self.state.items():
            assert torch.equal(flat(found[name].contiguous()), flat(tensor.detach().contiguous())), (name, self.step)
        return self.snapshots.copied

    def settle(self) -> None:
        for _ in range(3):
            self.write()


def frozen(elements: int = LARGE) -> Tensor:
    return torch.randn(elements)


@kernel_tells
def test_a_tensor_that_is_not_written_is_copied_into_each_slot_once(folder: Path) -> None:
    written = Written(folder, {"frozen": frozen(), "trained": torch.zeros(100)})
    copied = []
    for _ in range(6):
        written.state["trained"].add_(1)
        copied.append(written.write())
    assert copied[:2] == [4 * LARGE + 400] * 2
    assert all(c < 400 + 2 * 4096 for c in copied[2:]), copied


@kernel_tells
def test_a_tensor_that_trains_for_a_while_and_is_frozen_then_is_copied_no_more(folder: Path) -> None:
    weight = nn.Parameter(frozen())
    written = Written(folder, {"weight": weight})
    for _ in range(4):
        with torch.no_grad():
            weight.add_(1)
        assert written.write() == 4 * LARGE
    assert [written.write() < 8192 for _ in range(5)] == [False, False, True, True, True]


NUMBERS = itertools.cycle(range(1, 250))  # so that no write is what was there


def through_data(t: Tensor) -> None:
    t.data[12345] = next(NUMBERS)


def through_numpy(t: Tensor) -> None:
    t.detach().numpy()[12345] = next(NUMBERS)


def through_dlpack(t: Tensor) -> None:
    torch.from_dlpack(t.detach()).mul_(2)


def through_foreach_on_data(t: Tensor) -> None:
    torch._foreach_copy_([t.data], [torch.full_like(t, next(NUMBERS))])


def through_an_address(t: Tensor) -> None:
    ctypes.memset(t.data_ptr() + 40_000, next(NUMBERS), 1)


def through_a_view(t: Tensor) -> None:
    t.detach()[5:9] = next(NUMBERS)


def through_the_kernel(t: Tensor) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes([next(NUMBERS)]) * 8)
        file.seek(0)
        array = (ctypes.c_char * 8).from_address(t.data_ptr() + 8192 + 16)
        assert file.readinto(array) == 8  # type: ignore[attr-defined]


def through_a_thread(t: Tensor) -> None:
    thread = threading.Thread(target=through_an_address, args=[t])
    thread.start()
    thread.join()


def at_the_first_byte(t: Tensor) -> None:
    ctypes.memset(t.data_ptr(), next(NUMBERS), 1)


def at_the_last_byte(t: Tensor) -> None:
    ctypes.memset(t.data_ptr() + t.numel() * t.element_size() - 1, next(NUMBERS), 1)


def by_other_memory(t: Tensor) -> None:
    t.set_(torch.full_like(t, next(NUMBERS)))


def by_other_data(t: Tensor) -> None:
    t.data = torch.full_like(t, next(NUMBERS))


def by_a_swap(t: Tensor) -> None:
    """As `Ema.swapped` does."""
    other = torch.full_like(t, next(NUMBERS))
    t.data, other.data = other.data, t.data


WAYS: list[Callable[[Tensor], None]] = [
    through_data, through_numpy, through_dlpack, through_foreach_on_data, through_an_address, through_a_view,
    through_the_kernel, through_a_thread, at_the_first_byte, at_the_last_byte, by_other_memory, by_other_data, by_a_swap,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_write_is_seen_however_it_is_made(folder: Path, way: Callable[[Tensor], None], requires_grad: bool) -> None:
    tensor = frozen()
    if requires_grad:
        tensor = nn.Parameter(tensor)
    written = Written(folder, {"a": frozen(), "it": tensor, "b": frozen(), "small": torch.zeros(3)})
    written.settle()
    for _ in range(4):  # into either slot, and after it has been looked at again
        before = tensor.detach().clone()
        with torch.no_grad():
            way(tensor)
        assert not torch.equal(flat(before), flat(tensor.detach()))
        written.write()
        written.write()
        written.write()


@kernel_tells
@pytest.mark.parametrize("way", [through_data, through_numpy, through_an_address, through_the_kernel])
def test_the_version_counter_alone_would_not_see_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Tensor], None]
) -> None:
    monkeypatch.setattr(WrittenPages, "_works", lambda _: True)
    monkeypatch.setattr(WrittenPages, "untouched", lambda *_: True)
    written = Written(folder, {"it": frozen()})
    written.settle()
    way(written.state["it"])
    with pytest.raises(AssertionError, match="it"):
        written.write()


def test_where_the_kernel_does_not_tell_everything_is_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WrittenPages, "open", lambda: None)
    written = Written(folder, {"frozen": frozen()})
    assert [written.write() for _ in range(5)] == [4 * LARGE] * 5
    through_data(written.state["frozen"])
    written.write()


def test_memory_that_other_processes_share_is_copied_each_time(folder: Path) -> None:
    shared = frozen().share_memory_()
    written = Written(folder, {"shared": shared})
    written.settle()
    pid = os.fork()
    if pid == 0:
        ctypes.memset(shared.data_ptr() + 40_000, next(NUMBERS), 1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert written.write() == 4 * LARGE


def test_a_file_that_a_tensor_is_mapped_from_may_change(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(4 * LARGE))
    mapped = torch.from_file(str(file), shared=False, size=LARGE)
    written = Written(folder, {"mapped": mapped})
    written.settle()
    with file.open("r+b") as changed:
        changed.seek(4096)
        changed.write(b"1234")
    written.write()


def test_a_child_process_that_writes_its_copy_changes_nothing(folder: Path) -> None:
    written = Written(folder, {"frozen": frozen()})
    written.settle()
    copied = written.write()
    pid = os.fork()
    if pid == 0:
        ctypes.memset(written.state["frozen"].data_ptr() + 40_000, next(NUMBERS), 1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert written.write() == copied


def test_two_writers_of_the_same_tensors_both_see_every_write(folder: Path) -> None:
    state = {"frozen": frozen()}
    one, two = Written(folder / "one", state), Written(folder / "two", state)
    for _ in range(4):
        one.write()
        two.write()
    through_data(state["frozen"])
    two.write()
    two.write()
    one.write()
    one.write()


def test_memory_that_is_given_back_and_used_again_is_not_what_it_was(folder: Path) -> None:
    """A buffer that is replaced in each step comes to lie where an older one lay."""
    written = Written(folder, {"frozen": frozen(), "center": torch.zeros(LARGE)})
    for step in range(12):
        written.state["center"] = torch.full((LARGE,), float(step))
        copied = written.write()
    if KERNEL_TELLS:
        assert copied < 4 * LARGE + 3 * 4096, "the others are not copied for its sake"


def test_what_is_written_in_vain_again_and_again_is_looked_at_less_often(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that follows its student under `.data`."""
    protected = []
    protect = WrittenPages._protect
    monkeypatch.setattr(WrittenPages, "_protect", lambda self, r: protected.append(r) or protect(self, r))
    written = Written(folder, {"teacher": frozen()})
    for _ in range(100):
        written.state["teacher"].data.mul_(0.9)
        written.write()
    # The first one, and then after 2, 4, 8, 16 and 32 looks; and the trial of the kernel itself.
    assert len(protected) <= 8


def test_tied_and_overlapping_tensors_are_followed_as_one(folder: Path) -> None:
    base = frozen(2 * LARGE)
    written = Written(folder, {"a": base[: LARGE + 1000], "b": base[LARGE - 1000 :], "tied": base})
    written.settle()
    for tensor in list(written.state.values()):
        through_data(tensor)
        written.write()
        written.write()


def test_another_shape_dtype_or_set_of_tensors_is_another_state(folder: Path) -> None:
    weight = frozen()
    written = Written(folder, {"a": weight, "b": frozen()})
    for tensor in (weight.view(2, -1), weight.view(torch.int32), weight[: LARGE // 2], weight, weight.view(-1, 2).T):
        written.state["a"] = tensor
        for _ in range(3):
            written.write()
        through_data(written.state["b"])
        written.write()
    del written.state["a"]
    for _ in range(3):
        written.write()


@kernel_tells
def test_a_module_with_frozen_layers_and_its_optimizer(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.Linear(1024, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    snapshots = opened(folder)
    states = {"model": live(model), "optimizer": live(optimizer)}
    copied = []
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 512)).sum().backward()
        optimizer.step()
        snapshots.write({**states, "loop": {"step": step}}, generation=1, step=step)
        copied.append(snapshots.copied)
        found = unpack(snapshots.read())
        for name, tensor in model.state_dict().items():
            assert torch.equal(found["model"][name], tensor)
    assert copied[-1] < copied[0] - model[0].weight.nbytes + 2 * 4096


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(WAYS)), max_size=2),
        min_size=4,
        max_size=16,
    ),
    gaps=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_any_writes_in_any_order_are_in_the_next_snapshot(
    folder: Path, steps: list[list[tuple[str, Callable[[Tensor], None]]]], gaps: list[int]
) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as path:
        # Neighbours in one piece of memory, so that they have pages in common.
        memory = torch.randn(3 * LARGE + sum(gaps))
        state, at = {}, 0
        for name, gap in zip("abc", gaps, strict=True):
            at += gap
            state[name] = memory[at : at + LARGE]
            at += LARGE
        written = Written(Path(path), state)
        for step in steps:
            for name, way in step:
                way(state[name])
            written.write()


# What a device is asked for, computed on the CPU.


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged = unchanged_module.Unchanged
    monkeypatch.setattr(unchanged, "_look_at_pages", lambda self, quiet: unchanged._look_at_devices(quiet))


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_on_a_device_a_write_is_seen_by_its_hash(folder: Path, way: Callable[[Tensor], None]) -> None:
    written = Written(folder, {"it": frozen(), "other": frozen()})
    written.settle()
    assert written.write() < 4 * 4096
    for _ in range(4):
        way(written.state["it"])
        for _ in range(3):
            written.write()


@pytest.mark.usefixtures("as_on_a_device")
def test_on_a_device_a_tensor_that_goes_to_and_fro_is_never_taken_for_what_it_was(folder: Path) -> None:
    written = Written(folder, {"it": torch.zeros(LARGE)})
    for step in range(40):
        written.state["it"].data.fill_(float(step // 3 % 2))
        written.write()


@given(
    size=st.integers(1, 700_000),
    start=st.integers(0, 7),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_a_hash_differs_where_bytes_do(size: int, start: int, data: st.DataObject) -> None:
    memory = torch.randint(0, 256, (size + start,), dtype=torch.uint8)
    bytes_ = memory[start:]
    before = fold(bytes_)
    assert torch.equal(before, fold(bytes_.clone()))
    changed = bytes_.clone()
    i, j = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    kind = data.draw(st.sampled_from(["flip one", "flip two", "swap", "longer"]))
    bit = 1 << data.draw(st.integers(0, 7))
    if kind == "flip one":
        changed[i] ^= bit
    elif kind == "flip two":
        changed[i] ^= bit
        changed[j] ^= bit
    elif kind == "swap":
        changed[[i, j]] = changed[[j, i]]
    else:
        changed = torch.cat([changed, torch.zeros(1, dtype=torch.uint8)])
    assert torch.equal(before, fold(changed)) == torch.equal(bytes_, changed)


def test_signs_that_change_in_pairs_change_the_hash() -> None:
    """A sum of words times odd numbers alone, modulo a power of two, loses the top bits of pairs."""
    weights = torch.randn(200_000)
    before = fold(flat(weights))
    for i, j in ((1, 3), (0, 2), (1, 131_073), (77_777, 199_999)):
        changed = weights.clone()
        changed[[i, j]] *= -1
        assert not torch.equal(before, fold(flat(changed)))


def test_a_hash_is_the_same_in_every_process_and_for_every_length() -> None:
    assert (
        fold(torch.arange(1000, dtype=torch.int64).to(torch.uint8)).tolist()
        == fold(torch.arange(1000, dtype=torch.int64).to(torch.uint8)).tolist()
    )
    assert len({tuple(fold(torch.zeros(n, dtype=torch.uint8)).tolist()) for n in range(1, 300)}) == 299
