"""What do weights that never change cost a training, and its recovery?

A script with 400 MB of frozen weights and 4 KB that train, in two members of `relight run` with the default interval of
snapshots. One member is killed (`kill-node`): how many steps are done again, how long `client.start` takes until the state
is there, how many bytes ranks are sent. In the same run the same job in the former way: every tensor is copied into every
snapshot, and the whole state is sent to every rank.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

import _runs

STEPS, KILLED_AT = 150, 100
SCRIPT = '''
import json, os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from relight_trainer import client, restore
from relight_trainer.checkpoint.packed import Packed
from relight_trainer.checkpoint.written import WrittenPages
from relight_trainer.handover import Handed

MEGABYTES, STEPS, SEED = (int(word) for word in sys.argv[1:4])
OUT, WAY = Path(sys.argv[4]), sys.argv[5]


def to_all(peers, held, own, **_):
    """As it was: the first who holds the state sends all of it to everybody."""
    holds = [bool(n) for [n] in peers.gather_numbers(held is not None)]
    owner = holds.index(True)
    data = held() if peers.rank == owner else None
    received = peers.broadcast(data, owner)
    size = len(received)
    return Handed(Packed(received), size if peers.rank == owner else 0, 0 if peers.rank == owner else size)


if WAY == "former":
    WrittenPages.open = classmethod(lambda cls: None)
    restore.hand_over = to_all

dist.init_process_group("gloo")
torch.manual_seed(SEED)
count = MEGABYTES * 10**6 // (4 * 1024 * 1024)
model = nn.Module()
model.frozen = nn.ParameterList(nn.Parameter(torch.randn(1024, 1024), requires_grad=False) for _ in range(count))
model.head = nn.Linear(1024, 1)
optimizer = torch.optim.SGD(model.head.parameters(), lr=0.01)
began, cpu = time.monotonic(), time.process_time()
run = client.start(model=model, optimizer=optimizer)
progress = run._session.progress
note = {
    "generation": progress.generation, "rank": dist.get_rank(), "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu,
    "resumed_from": progress.resumed_from, "sent": progress.sent_bytes, "received": progress.received_bytes,
}
(OUT / f"{WAY}-{progress.generation}-{dist.get_rank()}.json").write_text(json.dumps(note))
replica = run.wrap(model.head)
for inputs in run.steps(torch.utils.data.DataLoader(torch.randn(STEPS * 4, 1024), batch_size=4), epochs=1):
    optimizer.zero_grad()
    replica(inputs @ model.frozen[run.step % count]).square().mean().backward()
    optimizer.step()
    time.sleep(0.02)  # what a step of a training takes that is worth while
'''


def job(script: Path, *arguments: object) -> dict[str, Any]:
    return {
        "apiVersion": "relight.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "frozen"},
        "spec": {"nodes": 2, "trainer": {"script": [str(script), *map(str, arguments)]}},
    }


def measured(folder: Path, megabytes: int, seed: int, way: str) -> dict[str, Any]:
    """One kill: what came of it."""
    script, file, state = folder / "frozen.py", folder / f"{way}.yaml", folder / way
    script.write_text(SCRIPT)
    file.write_text(yaml.safe_dump(job(script, megabytes, STEPS, seed, folder, way)))
    final = _runs.run(file, state, *_runs.faults(f"kill-node:1@step:{KILLED_AT}"))
    if final["code"] != 0:
        raise SystemExit(f"the job ended with {final['code']}: see {folder / 'said'}")
    notes = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{way}-2-*.json"))]
    by_rank = {note["rank"]: note for note in notes}
    return {
        "digest": final["weightsDigest"],
        "lost steps": final["goodput"]["lostSteps"],
        "restore, s": max(note["seconds"] for note in notes),
        "restore of the survivor, CPU s": by_rank[0]["cpu"],
        "restore of the replacement, CPU s": by_rank[1]["cpu"],
        "sent to the survivor, MB": by_rank[0]["received"] / 1e6,
        "sent to the replacement, MB": by_rank[1]["received"] / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=_runs.RESULTS)
    chosen = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("now", "former"):
            (Path(folder) / way).mkdir()
            found[way] = measured(Path(folder), chosen.megabytes, chosen.seed, way)
            _runs.say(f"{way}: {found[way]}")
    rows: list[list[object]] = [["", "now", "former way"]]
    rows += [[name, found["now"][name], found["former"][name]] for name in found["now"] if name != "digest"]
    print(_runs.table(rows))
    ratio = found["former"]["restore, s"] / found["now"]["restore, s"]
    print(f"a restore takes 1/{ratio:.1f} of the former time")
    _runs.write(chosen.results, "frozen_state", {"megabytes": chosen.megabytes, "killed at": KILLED_AT, **found})
    same = found["now"]["digest"] == found["former"]["digest"]
    return 0 if same and found["now"]["lost steps"] == 0 and found["now"]["sent to the survivor, MB"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
