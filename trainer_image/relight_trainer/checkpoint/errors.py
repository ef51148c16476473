"""What can go wrong with training state, each with the exit code a worker ends with when nobody handles it."""

from typing import ClassVar

from relight_agent.exits import ExitCode


class CheckpointError(Exception):
    """Base of all errors of this package."""

    exit_code: ClassVar[ExitCode] = ExitCode.EXCEPTION


class UnsupportedState(CheckpointError):
    """The state holds something that cannot be saved, or the ranks hold states of different shape."""

    exit_code = ExitCode.BAD_CONFIG


class SnapshotsOff(CheckpointError):
    """Two states do not fit the run folder's memory. Training can go on without snapshots."""


class StorageFailed(CheckpointError):
    """The storage of the checkpoints refused to read or write; trying again may help."""

    exit_code = ExitCode.STORAGE_FAILED


class WrongStorageOptions(CheckpointError):
    """The Secret with the storage's credentials has a key that the storage does not know."""

    exit_code = ExitCode.BAD_CONFIG


class Fenced(CheckpointError):
    """A newer generation of the job has begun: this one may no longer write checkpoints."""

    exit_code = ExitCode.PEER_LOST


class ConfigChanged(CheckpointError):
    """The checkpoints are sound, but of another configuration, or of a newer Relight."""

    exit_code = ExitCode.BAD_CONFIG


class NoUsableCheckpoint(CheckpointError):
    """There are checkpoints, and none of them is whole."""

    exit_code = ExitCode.BAD_DATA
