"""What a container uses, from cgroups of either version, made by hand and real."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.cgroups import group

from relight_agent.cgroup import Cgroup, Usage, places
from relight_trainer.observe.gpu import Gpu, Gpus
from relight_trainer.observe.machine import rates

MIB = 1 << 20


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def proc(root: Path, cgroup: str, mounts: list[tuple[str, str, str, str]]) -> Path:
    """/proc/self as a process sees it; `mounts` are (root, mount point below `root`, type, super options)."""
    lines = [
        f"{30 + i} 1 0:{i} {inside} {root / point} rw,nosuid shared:{i} - {kind} {kind} rw,{options}\n"
        for i, (inside, point, kind, options) in enumerate(mounts)
    ]
    tree(root, {"proc/cgroup": cgroup, "proc/mountinfo": "".join(lines)})
    return root / "proc"


def read(proc_self: Path) -> Usage:
    return Cgroup(proc_self, clock=lambda: 7.0).read()


V2 = {
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\nnr_periods 100\nnr_throttled 25\nthrottled_usec 750000\n",
    "cpu.max": "200000 100000\n",
    "memory.current": f"{300 * MIB}\n",
    "memory.max": f"{512 * MIB}\n",
    "memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
    "memory.events": "oom 2\noom_kill 1\n",
    "io.stat": "8:0 rbytes=100 wbytes=7 rios=1\n8:16 rbytes=20 wbytes=3 rios=1\n",
}
WHOLE = Usage(7.0, 2.5, 2.0, 100, 25, 0.75, 200 * MIB, 512 * MIB, 1, 120, 10)


def test_version_2_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    tree(tmp_path / "cg", V2)
    assert read(proc(tmp_path, "0::/\n", [("/", "cg", "cgroup2", "nsdelegate")])) == WHOLE


def test_limits_above_hold_too_and_the_one_that_throttles_is_asked(tmp_path: Path) -> None:
    pod, container = "kubepods/pod1", "kubepods/pod1/c1"
    tree(tmp_path / "cg" / container, {**V2, "cpu.max": "max 100000\n", "memory.max": "max\n"})
    stat = "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2000000\n"
    tree(tmp_path / "cg" / pod, {"cpu.max": "50000 100000\n", "cpu.stat": stat, "memory.max": f"{256 * MIB}\n"})
    tree(tmp_path / "cg/kubepods", {"cpu.max": "400000 100000\n", "memory.max": f"{900 * MIB}\n"})
    usage = read(proc(tmp_path, f"0::/{container}\n", [("/", "cg", "cgroup2", "rw")]))
    assert (usage.cpu_seconds, usage.cpu_limit, usage.memory_limit) == (2.5, 0.5, 256 * MIB)
    assert (usage.periods, usage.throttled_periods, usage.throttled_seconds) == (10, 4, 2.0)


def test_version_1_whose_mount_is_the_containers_own_folder(tmp_path: Path) -> None:
    inside = "/kubepods/pod1/c1"  # what the container's processes read of themselves
    tree(
        tmp_path / "cg",
        {
            "cpu,cpuacct/cpuacct.usage": "2500000000\n",
            "cpu,cpuacct/cpu.stat": "nr_periods 100\nnr_throttled 25\nthrottled_time 750000000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "memory/memory.usage_in_bytes": f"{300 * MIB}\n",
            "memory/memory.limit_in_bytes": f"{512 * MIB}\n",
            "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {100 * MIB}\n",
            "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "blkio/blkio.throttle.io_service_bytes_recursive": (
                "8:0 Read 100\n8:0 Write 7\n8:16 Read 20\n8:16 Write 3\nTotal 130\n"
            ),
        },
    )
    mounts = [(inside, f"cg/{name}", "cgroup", name) for name in ("cpu,cpuacct", "memory", "blkio")]
    cgroup = f"5:cpu,cpuacct:{inside}\n4:memory:{inside}\n3:blkio:{inside}\n1:name=systemd:/x\n0::/\n"
    assert read(proc(tmp_path, cgroup, mounts)) == WHOLE


def test_both_versions_at_once_each_for_what_it_has(tmp_path: Path) -> None:
    tree(
        tmp_path / "cg/memory/a", {"memory.usage_in_bytes": "4096\n", "memory.limit_in_bytes": "9223372036854771712\n"}
    )
    tree(tmp_path / "cg/unified/a", {"cpu.stat": "usage_usec 1000000\n", "cpu.max": "max 100000\n"})
    mounts = [("/", "cg/memory", "cgroup", "memory"), ("/", "cg/unified", "cgroup2", "rw")]
    usage = read(proc(tmp_path, "4:memory:/a\n0::/a\n", mounts))
    assert usage == Usage(7.0, cpu_seconds=1.0, memory_bytes=4096)


def test_a_mount_point_with_a_space_and_a_path_that_leads_out(tmp_path: Path) -> None:
    tree(tmp_path / "c g", V2)
    shown = proc(tmp_path, "0::/../other\n", [("/", "c\\040g", "cgroup2", "rw")])
    assert places(shown)[""].folder == tmp_path / "c g"
    assert read(shown) == WHOLE


@pytest.mark.parametrize("text", ["", "0::/\n"])
def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path, text: str) -> None:
    assert read(proc(tmp_path, text, [("/", "not-there", "cgroup2", "rw")])) == Usage(7.0)
    assert read(tmp_path / "no-proc") == Usage(7.0)


def test_rates_are_per_second_and_throttling_is_a_share_of_periods() -> None:
    later = WHOLE._replace(at=9.0, cpu_seconds=5.5, periods=120, throttled_periods=40, read_bytes=220, written_bytes=10)
    assert rates(WHOLE, later) == {
        "machine/cpu_cores": 1.5,
        "machine/cpu_limit_cores": 2.0,
        "machine/throttled": 0.75,
        "machine/memory_bytes": 200 * MIB,
        "machine/memory_limit_bytes": 512 * MIB,
        "machine/io_read_bytes_per_second": 50.0,
        "machine/io_written_bytes_per_second": 0.0,
    }
    assert rates(Usage(1.0), Usage(1.0)) == {}


SPIN = """
import sys, time
sys.stdin.readline()
while time.process_time() < float(sys.argv[1]): pass
print(time.process_time(), flush=True)
sys.stdin.readline()
"""


def test_a_busy_process_under_a_limit_is_measured_and_seen_to_be_throttled() -> None:
    limit, burn = 0.2, 0.12
    with (
        group(cores=limit) as limited,
        subprocess.Popen(
            [sys.executable, "-Sc", SPIN, str(burn)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as busy,
    ):
        assert busy.stdin is not None
        assert busy.stdout is not None
        try:
            limited.add(busy.pid)
            container = Cgroup(Path(f"/proc/{busy.pid}"))
            before = container.read()
            busy.stdin.write("go\n")
            busy.stdin.flush()
            used = float(busy.stdout.readline())
            now = container.read()
        finally:
            busy.kill()
    assert now.cpu_limit == limit
    assert now.cpu_seconds is not None
    assert before.cpu_seconds is not None
    # What the process used before it was put there is not in it.
    assert used * 0.7 <= now.cpu_seconds - before.cpu_seconds <= used * 1.1 + 0.01
    assert now.throttled_periods
    assert now.throttled_seconds


class Nvml(ModuleType):
    """A double of pynvml with one GPU that knows nothing of ECC."""

    NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
    nvmlClocksThrottleReasonHwSlowdown = 0x8  # noqa: N815
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20  # noqa: N815

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")

    def nvmlInit(self) -> None: ...  # noqa: N802

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=3 * MIB, total=9 * MIB),
            "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=63),
            "nvmlDeviceGetPowerUsage": lambda _: 250_500,
            "nvmlDeviceGetTemperature": lambda _, __: 71,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x20,
        }
        return answers.get(name, self._refuse)

    def _refuse(self, *_: Any) -> Any:
        raise self.NVMLError("Not Supported")


def test_a_gpu_tells_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert Gpus(["GPU-1"]).read() == [Gpu(0, 0.63, 3 * MIB, 9 * MIB, 250.5, 71, None, slowed=True)]


def test_without_a_gpu_or_its_library_nothing_is_said() -> None:
    assert Gpus([]).read() == []
    assert Gpus(["GPU-00000000-0000-0000-0000-000000000000"]).read() == []
