"""A hook that tells what a training has had its worker import."""

from relight_trainer.hooks import Hook
from relight_trainer.late_dynamo import is_imported
from relight_trainer.run import Run


class Imports(Hook):
    def evaluation_end(self, run: Run, _metrics: object) -> None:
        run.log({"compiler": str(is_imported())})
