"""One generation at one member: torch's elastic agent with a decided rendezvous, in a session of its own.

`python -m relight_trainer.generation ORDER.json` runs one in a fresh interpreter (a cold start).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from relight_agent.files import from_dict, read_json, write_json
from relight_trainer import hygiene, rendezvous, worker
from relight_trainer.hygiene import environment, leave_working_folder_out_of_path

MONITOR_INTERVAL_SECONDS = 0.02


@dataclass(frozen=True)
class Order:
    """The agent's `run` message: what it takes to start one generation at one member."""

    generation: int
    run_id: str
    node_rank: int
    nodes: int
    proc_per_node: int
    master_address: str
    master_port: int
    host_store: bool
    env: dict[str, str]
    generation_dir: str
    cold: bool = False

    @classmethod
    def from_message(cls, message: Any) -> "Order":
        """Raises ValueError where a field is missing."""
        order = from_dict(cls, message)
        if order is None:
            raise ValueError("an order to run a generation lacks a field")
        return order


def run(order: Order, *, start_method: str) -> int:
    """Run the workers of `order` to their ends: 0 where all ended with 0. What happened stands in their outcomes."""
    os.environ.update(order.env)
    os.environ.update(
        RELIGHT_GENERATION=str(order.generation),
        RELIGHT_GENERATION_DIR=order.generation_dir,
    )
    # All members have the same number of workers: ranks follow from the node rank.
    os.environ[worker.ELASTIC_IDENTICAL] = "1"
    if order.proc_per_node > 1:  # as torchrun does it; of one worker torch's threads are set, and the variable is not
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("RELIGHT_LAUNCHER_FD", None)
    # torch's elastic agent would export 1: abort, and with it collectives that "succeed" half-reduced.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")
    rendezvous.register()
    # Each worker's end is told by its outcome; the elastic agent's warnings about it would only bury that.
    hygiene.hush_loggers("torch.distributed.elastic", "torch.multiprocessing")
    launch = elastic_launch(_config(order, start_method), worker.main)
    try:
        launch(os.getpid())
    except rendezvous.WorkersEnded:
        return 0
    except ChildFailedError:
        return 1
    return 0


def _config(order: Order, start_method: str) -> LaunchConfig:
    host = f"[{order.master_address}]" if ":" in order.master_address else order.master_address
    with _no_device_check():
        return LaunchConfig(
            min_nodes=order.nodes,
            max_nodes=order.nodes,
            nproc_per_node=order.proc_per_node,
            run_id=order.run_id,
            role="default",  # torchrun's
            rdzv_backend=rendezvous.BACKEND,
            rdzv_endpoint=f"{host}:{order.master_port}",
            rdzv_configs={"node_rank": order.node_rank},
            max_restarts=0,
            monitor_interval=MONITOR_INTERVAL_SECONDS,
            start_method=start_method,
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(order.generation_dir) / "errors")),
        )


@contextlib.contextmanager
def _no_device_check() -> Iterator[None]:
    """LaunchConfig asks for CUDA devices to bind NUMA nodes by: cuInit, after which no forked worker could use CUDA."""
    asked = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        with environment({"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}):
            yield
    finally:
        torch.cuda.is_available = asked


def exec_cold(order: Order) -> None:
    """Become a fresh interpreter that runs `order` with workers started by spawn."""
    path = Path(order.generation_dir) / "order.json"
    write_json(path, vars(order))
    os.execv(sys.executable, [sys.executable, "-m", "relight_trainer.generation", str(path)])  # noqa: S606


def main() -> int:
    leave_working_folder_out_of_path()
    return run(Order.from_message(read_json(sys.argv[1])), start_method="spawn")


if __name__ == "__main__":
    sys.exit(main())
