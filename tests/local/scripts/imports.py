"""A hook that tells what a training has had its worker import."""

import sys

from relight_trainer.hooks import Hook
from relight_trainer.run import Run


class Imports(Hook):
    def evaluation_end(self, run: Run, _metrics: object) -> None:
        run.log({"compiler": str("torch._dynamo.eval_frame" in sys.modules)})
