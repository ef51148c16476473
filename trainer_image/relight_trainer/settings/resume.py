"""The section `resume`: what may have changed since the state was saved that training goes on from."""

from pydantic import Field

from relight_trainer.settings.names import Patterns
from relight_trainer.strict import StrictModel


class Resume(StrictModel):
    allow: Patterns = Field(
        [], description="Fields that may have changed since, such as optimizer.lr, schedule or train.duration."
    )
