"""docs/trainingjob.md, from the models: `python -m relight_operator.api.reference > docs/trainingjob.md`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from relight_agent.reserved import PREFIXES, TORCHRUN
from relight_operator.api import bounds, quantities
from relight_operator.api.base import ApiModel
from relight_operator.api.crd import resolved
from relight_operator.api.durations import EXAMPLES, PATTERN
from relight_operator.api.job import (
    API_VERSION,
    AUTO_OR_NUMBER,
    KIND,
    JobSpec,
)
from relight_trainer.registry import arguments
from relight_trainer.settings.clip import CLIPS
from relight_trainer.settings.data import DATA
from relight_trainer.settings.ddp import Ddp
from relight_trainer.settings.ema import EmaArguments
from relight_trainer.settings.evaluate import Evaluate
from relight_trainer.settings.freeze import Frozen
from relight_trainer.settings.hooks import CustomHook
from relight_trainer.settings.init_from import InitFrom
from relight_trainer.settings.loader import Loader
from relight_trainer.settings.loss import LOSSES
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.observe import Observe
from relight_trainer.settings.optimizer import OPTIMIZERS
from relight_trainer.settings.resume import Resume
from relight_trainer.settings.schedule import SCHEDULES
from relight_trainer.settings.spans import LENGTH_EXAMPLES, SPAN_EXAMPLES, Span, TrainingLength, TrainingSpan
from relight_trainer.settings.supernet import Supernet
from relight_trainer.settings.sync_bn import SyncBn
from relight_trainer.settings.train import Train

_HEAD = f"""\
# The TrainingJob, field by field

Generated from the models by `python -m relight_operator.api.reference`; a test compares.

```yaml
apiVersion: {API_VERSION}
kind: {KIND}
metadata: {{name: digits}}      # at most 40 characters: lower-case letters, digits and "-", a letter first
spec:
  nodes: 2
  trainer:
    config: {{model: {{type: digits_cnn}}, data: {{type: digits}}, train: {{duration: 15ep}}}}
  checkpoint: {{persistentVolumeClaim: {{claimName: ckpt}}}}
```

`relight validate job.yaml` checks a file and names every wrong field: where it is, what was found, what is allowed, the
nearest right name. A wrong file ends every command with exit code 64. With `--memory` it also says how much memory each worker
will want on its device; with `--limit 80GiB`, more than that is wrong too, and the answer is the micro-batch that would fit.

A *duration* is whole numbers with a unit, such as {EXAMPLES}; a *quantity* is an amount as Kubernetes writes it, such as
{quantities.EXAMPLES}. YAML is read as kubectl reads it: `yes`, `on` and `n` are
booleans and `1e-3` is a number, so put them in quotes where you mean text.

An object has bounds, so that one job costs the others nothing: at most {bounds.MAX_DEPTH} mappings and lists in each other, {bounds.MAX_VALUES}
entries of all mappings and lists of the spec together, {bounds.MAX_TEXT} characters in a text, {bounds.MAX_BYTES} bytes of JSON in the spec
(a letter beyond ASCII counts as six), and no U+0000 in any text. The server refuses what its schema can tell; what only Relight
can tell makes the job `Invalid`, with the reason in the condition.

## spec
"""

_CONFIG = f"""
## spec.trainer.config

The training core's own configuration. Everything has a default; the defaults reach 99 % on the digits.
A *length of training* is {LENGTH_EXAMPLES}; a *length in steps* is {SPAN_EXAMPLES}.
Time is that spent in training, evaluations and checkpoints included, recoveries not; it is in the checkpoints, so that a
resumed job goes on counting, and all ranks end after the same step. How many steps there are then depends on the machines:
**a job whose length is a time does not give the same bits twice.** Schedules that need the end (onecycle, cosine, ...) and shares
of the training (10%) are refused together with it.
"""


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "train": Train,
    "loader": Loader,
    "ema": EmaArguments,
    "freeze[]": Frozen,
    "init_from": InitFrom,
    "sync_bn": SyncBn,
    "supernet": Supernet,
    "ddp": Ddp,
    "evaluate": Evaluate,
    "observe": Observe,
    "resume": Resume,
    "hooks[]": CustomHook,
}


def render() -> str:
    """The page as Markdown."""
    parts = [_HEAD, _table(JobSpec), _exactly_one(), _environment(), _not_yet(), _CONFIG]
    for name, classes in (
        ("model", arguments(MODELS)),
        ("data", arguments(DATA)),
        ("loss", arguments(LOSSES)),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("clip", CLIPS),
    ):
        for kind, model in classes.items():
            about = f"{' '.join(model.__doc__.split())}\n\n" if model.__doc__ else ""
            parts.append(f"\n### {name}: {{type: {kind}}}\n\n{about}{_table(model, without='type')}")
    for name, section in _SECTIONS.items():
        about = f"{' '.join(section.__doc__.split())}\n\n" if section.__doc__ else ""
        parts.append(f"\n### {name}\n\n{about}{_table(section, without='type')}")
    return "".join(parts)


def _table(model: type[BaseModel], *, without: str = "") -> str:
    schema = model.model_json_schema(by_alias=True)
    rows = [row for row in _rows(schema, schema.get("$defs", {}), "") if not row.startswith(f"| `{without}`")]
    if not rows:
        return "No further fields.\n"
    return "\n".join(("| field | takes | default | |", "|---|---|---|---|", *rows)) + "\n"


def _rows(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, raw in schema.get("properties", {}).items():
        field = _resolved(raw, definitions)
        here = f"{path}{name}"
        default = "required" if name in schema.get("required", ()) else _default(field, definitions)
        yield f"| `{here}` | {_takes(field, definitions)} | {default} | {field.get('description', '').replace('|', chr(92) + '|')} |"
        below = _resolved(field["items"], definitions) if "items" in field else field
        yield from _rows(below, definitions, f"{here}[]." if "items" in field else f"{here}.")


def _takes(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    lengths = {
        PATTERN: "duration",
        resolved(_schema_of(TrainingSpan), {})["pattern"]: "length in steps",
        resolved(_schema_of(TrainingLength), {})["pattern"]: "length of training",
    }
    if field.get("pattern") in lengths:
        return lengths[field["pattern"]]
    if "options" in field:
        return " or ".join(dict.fromkeys(_takes(option, definitions) for option in field["options"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{v}`" for v in field["enum"])
    if field.get("pattern") == quantities.PATTERN:
        return "quantity"
    if field.get("pattern") == AUTO_OR_NUMBER["pattern"]:
        return "integer, 1 or more, or `Auto`"
    kind: str = field["type"]
    if isinstance(field.get("additionalProperties"), Mapping):
        return f"mapping to {_takes(field['additionalProperties'], definitions)}"
    if kind == "array":
        item = _resolved(field["items"], definitions)
        return f"list of {'texts or mappings' if 'options' in item else item['type'] + 's'}"
    low = [f"{field['minimum']} or more"] if "minimum" in field else []
    low += [f"more than {field['exclusiveMinimum']:g}"] if "exclusiveMinimum" in field else []
    high = [f"at most {field['maximum']}"] if "maximum" in field else []
    high += (
        [f"less than {field['exclusiveMaximum']:g}"]
        if "exclusiveMaximum" in field and field["exclusiveMaximum"] < 2**53
        else []
    )
    return ", ".join([kind, *low, *high])


def _resolved(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """`raw` without references; where it takes several kinds of value, they are its `options`."""
    options = [option for option in raw.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) < 2:
        return resolved(raw, definitions)
    rest = {name: value for name, value in raw.items() if name != "anyOf"}
    return {**rest, "options": [resolved(option, definitions) for option in options]}


def _schema_of(annotated: Any) -> Mapping[str, Any]:
    return TypeAdapter(annotated).json_schema()


def _default(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The default of a field, unless its own fields' defaults say it already."""
    value = field.get("default")
    if value in (None, [], {}, ""):
        return ""
    if isinstance(value, Mapping) and "properties" not in field:
        value = str(Span(**value))
    if isinstance(value, Mapping):
        own = {name: resolved(f, definitions).get("default") for name, f in field["properties"].items()}
        value = {name: v for name, v in value.items() if v is not None}
        if all(own[name] == v or isinstance(v, Mapping) for name, v in value.items()):
            return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _models(model: type[ApiModel], path: str) -> Iterator[tuple[str, type[ApiModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, ApiModel):
                yield from _models(part, f"{path}.{field.alias or name}")


def _exactly_one() -> str:
    lines = [
        f"- `{path}`: exactly one of {', '.join(f'`{model.model_fields[n].alias or n}`' for n in model.exactly_one)}"
        for path, model in _models(JobSpec, "spec")
        if model.exactly_one
    ]
    return "\n" + "\n".join(lines) + "\n"


def _environment() -> str:
    names = ", ".join(f"`{n}`" for n in [*sorted(TORCHRUN), *(f"{p}*" for p in PREFIXES)])
    return f"\nEnvironment variables that Relight sets and a job cannot: {names}.\n"


def _not_yet() -> str:
    lines = [
        f"- `{path}`: {', '.join(f'`{n}`' for n in sorted(model.not_yet))}"
        for path, model in _models(JobSpec, "spec")
        if model.not_yet
    ]
    return '\nKnown, and refused as "not supported yet":\n\n' + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
