"""The section `hooks`: somebody's own, done beside the training."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from relight_trainer.registry import Custom, Table, named

HOOKS: Table = {}


class CustomHook(Custom):
    """`type` names a subclass of relight_trainer.hooks.Hook; the other fields are its arguments."""

    order: int | None = Field(None, ge=0, le=100, description="Lower is earlier; the class's own if not given.")
    on_error: Literal["fail", "warn"] | None = Field(
        None, description="warn: an exception is told, and the hook left out from then on."
    )

    def keywords(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


HookSettings = Annotated[SerializeAsAny[CustomHook], named(HOOKS, CustomHook)]
