"""What the models of the API share: their base, names of objects, and the environment variables that are Relight's."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from relight_agent.reserved import is_reserved
from relight_trainer.strict import StrictModel, problem


def env_name(value: Any) -> Any:
    if isinstance(value, str) and is_reserved(value):
        raise problem(
            "reserved", "set by Relight, so it cannot be set here", allowed="any name but torchrun's and RELIGHT_*"
        )
    return value


def matching(pattern: str, allowed: str, max_length: int) -> BeforeValidator:
    """A check by `pattern` whose answer is `allowed` in words: nobody should have to read a regular expression."""
    whole = re.compile(pattern.removesuffix("$") + r"\Z")  # Python's $ would let a final newline pass

    def check(value: Any) -> Any:
        if isinstance(value, str) and not (len(value) <= max_length and whole.match(value)):
            raise problem("form", "not a valid name", allowed=f"{allowed}, at most {max_length} characters")
        return value

    return BeforeValidator(check, json_schema_input_type=Annotated[str, Field(pattern=pattern, max_length=max_length)])


LOWER = "lower-case letters, digits"
ObjectName = Annotated[str, matching(r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", f'{LOWER}, "-" and "."', 253)]
EnvName = Annotated[
    str,
    BeforeValidator(env_name),
    matching(r"^[A-Za-z_][A-Za-z0-9_]*$", 'letters, digits and "_", no digit first', 256),
]


class ApiModel(StrictModel):
    """camelCase in JSON, snake_case in Python. Documents are read with `by_name=False`: see validate.py."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)
