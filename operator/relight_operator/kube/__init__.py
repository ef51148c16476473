"""The backend whose members are pods: the same `plan()`, coordinator and agents as `relight run`."""
