"""The checks of `relight validate` that need this machine, and the trial step of `--deep` in a separate process."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from relight_agent.files import read_json, write_json
from relight_operator.api.job import TrainingJob
from relight_operator.api.problems import Problem
from relight_trainer import config as trainer_config
from relight_trainer.config import TrainerConfig

DEEP_SECONDS = 120.0
_MEMORY_SHARE = 0.8  # of what is free, for the process of --deep


def has_own_code(job: TrainingJob | None) -> bool:
    """Whether the job's code and files are elsewhere: in its image, or in a repository."""
    return job is not None and (job.spec.trainer.image is not None or job.spec.code is not None)


def failings(job: TrainingJob | None, config: TrainerConfig | None, folder: Path, path: str) -> Iterator[Problem]:
    """Problems that would keep the job from running on this machine with `folder` as its working folder."""
    script = job.spec.trainer.script if job is not None else None
    if script is not None and not (folder / script[0]).exists():
        yield Problem("spec.trainer.script[0]", "no such file here", f'"{script[0]}"', f"a path relative to {folder}")
    if config is None:
        return
    if config.train.device == "cuda" and not _has_gpu():
        yield Problem(f"{path}.train.device", "this machine has no GPU", '"cuda"', "auto, cpu")
    if config.init_from is not None:
        source = config.init_from.path
        if "://" not in source and not (folder / source).exists():
            yield Problem(f"{path}.init_from.path", "no such file here", f'"{source}"', f"a path relative to {folder}")


def deep_problem(
    config: TrainerConfig, world: tuple[int, int], folder: Path, path: str, *, seconds: float = DEEP_SECONDS
) -> Problem | None:
    """The problem that a worker would have; None if one step succeeds. `world`: nodes, and workers per node."""
    with tempfile.TemporaryDirectory() as name:
        request, answer = Path(name) / "request.json", Path(name) / "answer.json"
        body = {"config": trainer_config.canonical(config), "nodes": world[0], "proc_per_node": world[1]}
        write_json(request, body)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "relight_trainer.trial", str(request), str(answer)],
                cwd=folder,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                preexec_fn=_bound_memory,  # this process has one thread
            )
        except subprocess.TimeoutExpired:
            return Problem(path, f"one step on the CPU took longer than {seconds:.0f} s")
        said = read_json(answer)
    if not isinstance(said, dict):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Problem(path, f"the process that tried one step ended with {done.returncode}: {last}")
    return Problem(path, f"one step on the CPU failed: {said['problem']}") if said["problem"] else None


def _bound_memory() -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = int(_MEMORY_SHARE * free)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _has_gpu() -> bool:
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))
