"""What an exception means: the messages are torch 2.13's own, taken from real failures."""

import pytest
import torch
import torch.distributed as dist

from relight_agent.exits import ExitCode
from relight_agent.files import MAX_MESSAGE_BYTES
from relight_trainer.failures import classify, describe

GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:77, "


class OurError(Exception):
    exit_code = ExitCode.BAD_DATA


TABLE = [
    (RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:28827. This"), ExitCode.PEER_LOST),
    (RuntimeError(f"{GLOO}pair.cc:537] Read error [127.0.0.1]:18845: Connection reset by peer"), ExitCode.PEER_LOST),
    (RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation"), ExitCode.PEER_LOST),
    (RuntimeError("[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1800000 ms"), ExitCode.PEER_LOST),
    (RuntimeError(f"{GLOO}device.cc:84] ifa != nullptr. Unable to find address for: eth9"), ExitCode.EXCEPTION),
    (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), ExitCode.PEER_LOST),
    (dist.DistNetworkError("Broken pipe"), ExitCode.PEER_LOST),
    (dist.DistStoreError("wait timeout after 2000ms, keys: /default_pg/0//1//cpu//0/1"), ExitCode.PEER_LOST),
    (dist.DistStoreError("Timed out after 3 seconds waiting for clients. 1/2 clients joined."), ExitCode.PEER_LOST),
    (dist.DistBackendError(f"{NCCL}remote process exited or there was a network error"), ExitCode.PEER_LOST),
    (dist.DistBackendError(f"{NCCL}invalid usage, ncclInvalidUsage: Duplicate GPU detected"), ExitCode.EXCEPTION),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ExitCode.OUT_OF_MEMORY),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        ExitCode.OUT_OF_MEMORY,
    ),
    (MemoryError(), ExitCode.OUT_OF_MEMORY),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), ExitCode.MACHINE_UNHEALTHY),
    (OurError("every checkpoint is corrupt"), ExitCode.BAD_DATA),
    (ConnectionResetError(104, "Connection reset by peer"), ExitCode.EXCEPTION),  # the object store's, not a peer's
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ExitCode.EXCEPTION),
    (ValueError("no such digit"), ExitCode.EXCEPTION),
    (KeyboardInterrupt(), ExitCode.EXCEPTION),
    (SystemExit(74), ExitCode.STORAGE_FAILED),
    (SystemExit(3), ExitCode.EXCEPTION),
    (SystemExit("usage: train.py"), ExitCode.EXCEPTION),
]


@pytest.mark.parametrize(
    ("error", "code"), TABLE, ids=lambda x: x.name if isinstance(x, ExitCode) else type(x).__name__
)
def test_classify(error, code):
    assert classify(error) is code


def raised(wrap):
    try:
        wrap()
    except Exception as error:
        return error
    return None


def test_an_error_that_user_code_wrapped_means_what_it_meant():
    def from_cause():
        try:
            raise dist.DistBackendError("connection closed")
        except RuntimeError as error:
            raise ValueError("training failed") from error

    def while_handling():
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("training failed")  # noqa: B904

    def from_none():
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("training failed") from None

    assert classify(raised(from_cause)) is ExitCode.PEER_LOST
    assert classify(raised(while_handling)) is ExitCode.OUT_OF_MEMORY
    assert classify(raised(from_none)) is ExitCode.EXCEPTION


def test_real_errors_of_torch_are_what_the_table_says():
    with pytest.raises(RuntimeError) as no_memory:
        torch.empty(1 << 50)
    assert classify(no_memory.value) is ExitCode.OUT_OF_MEMORY


def test_describe_names_the_innermost_line_of_the_user():
    error = raised(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
    text = describe(error)
    assert text.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert f"{__file__}:" in text
    assert "\n" not in text


def test_describe_is_bounded_and_keeps_the_place():
    def fail():
        raise ValueError("x" * 5000)

    text = describe(raised(fail))
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    assert __file__ in text


def test_our_own_errors_are_told_by_their_text_alone():
    assert describe(OurError("every checkpoint is corrupt")) == "every checkpoint is corrupt"
