"""What NVIDIA's management library says of this member's GPUs; nothing where there is none.

`nvidia-ml-py` (module pynvml) is in the extra `gpu` and imported only here. NVML is a library of its own beside CUDA:
reading it neither touches a CUDA context nor waits for the device.
"""

import contextlib
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """One GPU at one moment; None where the GPU does not tell."""

    place: int  # among this member's, as torch counts
    busy: float | None = None  # share of the last sampling period in which a kernel ran, 0..1
    memory_bytes: int | None = None  # used by all processes
    memory_limit: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    uncorrected_errors: int | None = None  # ECC, since the driver was loaded
    slowed: bool | None = None  # the clock is held down by heat or by hardware's power brake


class Gpus:
    """The GPUs with these UUIDs (`GPU-...`, as torch.cuda.get_device_properties(i).uuid names them)."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._handles: list[Any] = []
        self._nvml: Any = None
        if not uuids:
            return
        with contextlib.suppress(ImportError):
            self._nvml = importlib.import_module("pynvml")
        if self._nvml is None:
            return
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._handles = [self._nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]

    def read(self) -> list[Gpu]:
        """Never raises."""
        return [self._of(place, handle) for place, handle in enumerate(self._handles)]

    def _of(self, place: int, handle: Any) -> Gpu:
        nvml = self._nvml

        def ask(question: Callable[[], Any]) -> Any:
            try:
                return question()
            except nvml.NVMLError:  # this GPU, or its driver, has no such number
                return None

        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        busy = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        reasons = ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        slow = nvml.nvmlClocksThrottleReasonHwSlowdown | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        return Gpu(
            place,
            busy=None if busy is None else busy / 100,
            memory_bytes=memory.used if memory else None,
            memory_limit=memory.total if memory else None,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            uncorrected_errors=ask(
                lambda: nvml.nvmlDeviceGetTotalEccErrors(
                    handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            ),
            slowed=None if reasons is None else bool(reasons & slow),
        )


def own_uuids() -> list[str]:
    """The UUIDs of the GPUs that torch sees in this process; none where CUDA has not been initialised in it."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
