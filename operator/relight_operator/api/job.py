"""The `TrainingJob` resource (relight.dev/v1alpha1): metadata and spec. See status.py for its status."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from relight_agent.exits import EXITS, RULED_CAUSES, Cause, Class, ExitCode, exit_of
from relight_operator.api import durations, quantities
from relight_operator.api.base import LOWER, ApiModel, ObjectName, matching
from relight_operator.api.bounds import MAX_TEXT
from relight_operator.api.environment import EnvFromSource, EnvVar, SecretReference
from relight_operator.api.template import DOMAIN, MAX_FIELDS, Template
from relight_trainer.code_source import WrongSource, check_ref, check_url
from relight_trainer.strict import located, nearest, problem

GROUP = DOMAIN
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingJob"
MAX_NODES = 1000
MAX_PROC = 1024  # workers of a member
MAX_NAME = 40  # pod names, host names and labels are built from it
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

GPU = "nvidia.com/gpu"
FAILURE_CAUSES = tuple(map(str, RULED_CAUSES))
_STORES = ("s3", "gs", "abfs", "az", "hdfs")  # object stores that fsspec has packages for
_URI = rf"(?:file:///|(?:{'|'.join(_STORES)})://)[^\s?#@]+"
_DEVICE = re.compile(r"(hugepages-|[a-z0-9]([-.a-z0-9]*[a-z0-9])?/)[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
OWN_RESOURCES = ("cpu", "memory", "ephemeral-storage")  # of Kubernetes itself; others have a domain in their names


def _duration(value: Any) -> Any:
    try:
        durations.seconds(value if isinstance(value, str) else "")
    except ValueError:
        raise problem(
            "duration", "not a duration", allowed=f"whole numbers with a unit, such as {durations.EXAMPLES}"
        ) from None
    return value


def _positive(value: str) -> str:
    if not durations.seconds(value):
        raise problem("range", "out of range", allowed="more than 0s")
    return value


def _quantity(value: Any) -> Any:
    # `8` and `"8"` are one amount: kept as one text, so that nothing has changed where somebody adds the quotes.
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        quantities.amount(text if isinstance(text, str) else "")
    except ValueError:
        allowed = f"an amount such as {quantities.EXAMPLES}; fractions in quotes"
        raise problem("quantity", "not a quantity", allowed=allowed) from None
    return text


def _some(value: str) -> str:
    if not quantities.amount(value):
        raise problem("range", "out of range", allowed="more than 0")
    return value


def _often(value: Any) -> Any:
    if value != "Auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise problem("often", "neither a number of steps nor Auto", allowed="Auto, or a whole number, 1 or more")
    return value


def _resources(value: Any) -> Any:
    """Names that a server would refuse: those without a domain are Kubernetes' own, and there are few of them."""
    if not isinstance(value, Mapping):
        return value
    names = [n for n in value if isinstance(n, str) and n not in OWN_RESOURCES]
    wrong = [located(_unknown_resource(n), (n,), n) for n in names if not _DEVICE.fullmatch(n)]
    if wrong:
        raise ValidationError.from_exception_data("resources", wrong)
    return value


def _unknown_resource(name: str) -> PydanticCustomError:
    known = (*OWN_RESOURCES, GPU)
    near = GPU if "gpu" in name.lower() else nearest(name, known)  # a "gpu" is spelled much like "cpu"
    allowed = f"{', '.join(known)}, or another name with a domain"
    return problem("unknown", "unknown resource", allowed=allowed, near=near)


def _uri(value: Any) -> Any:
    allowed = f"file:///absolute/path or {', '.join(f'{store}://' for store in _STORES)} and bucket/path"
    if not isinstance(value, str) or re.fullmatch(_URI, value):
        return value
    if "@" in value:
        words = "no credentials here: they belong into the members' environment"
        raise problem("uri", words, allowed=allowed, secret=True)
    raise problem("uri", "not a checkpoint location", allowed=allowed, near=_near_uri(value))


def _near_uri(value: str) -> str | None:
    scheme, separator, rest = value.partition("://")
    near = nearest(scheme, _STORES) if separator else None
    return f"{near}://{rest}" if near and re.fullmatch(_URI, f"{near}://{rest}") else None


def _failure_code(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == ExitCode.RANKS_DIFFER:
        raise problem("code", f"never retried ({exit_of(value).meaning})", allowed="the exit code of another failure")
    if value in set(ExitCode) and exit_of(value).cause not in RULED_CAUSES:
        raise problem("code", f"no failure ({exit_of(value).meaning})", allowed="the exit code of a failure")
    if not 1 <= value <= 255:
        raise problem("range", "out of range", allowed="1 to 255")
    return value


def _failure_cause(value: Any) -> Any:
    if not isinstance(value, str) or value in FAILURE_CAUSES:
        return value
    allowed = ", ".join(FAILURE_CAUSES)
    if value in {str(c) for c in Cause}:
        raise problem("cause", "no failure of the job: it costs nothing anyway", allowed=allowed)
    raise problem("cause", "not a known cause", allowed=allowed, near=nearest(value, FAILURE_CAUSES))


def _git_url(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        check_url(value, schemes=("https", "ssh"))
    except WrongSource as error:
        allowed = "https://host/repository.git, ssh://git@host/repository.git or git@host:repository.git"
        secret = "@" in value and "://" in value  # somebody's password may stand before it
        raise problem("git", str(error), allowed=allowed, secret=secret) from None
    return value


def _git_ref(value: Any) -> Any:
    try:
        check_ref(value if isinstance(value, str) else "x")
    except WrongSource:
        raise problem("git", "not a name that git takes", allowed="a branch, a tag or a whole commit") from None
    return value


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith("/"):
        raise problem("path", "not an absolute path", allowed="/absolute/path")
    return value


Duration = Annotated[
    str,
    BeforeValidator(_duration),
    WithJsonSchema({"type": "string", "pattern": durations.PATTERN, "maxLength": durations.MAX_LENGTH}),
]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "pattern": quantities.PATTERN,
            "maxLength": quantities.MAX_LENGTH,
        }
    ),
]
AUTO_OR_NUMBER = {"x-kubernetes-int-or-string": True, "minimum": 1, "pattern": "^Auto$", "maxLength": 4}
Often = Annotated[int | Literal["Auto"], BeforeValidator(_often), WithJsonSchema(AUTO_OR_NUMBER)]
Quantities = Annotated[dict[str, Quantity], Field(max_length=64), BeforeValidator(_resources)]
Image = Annotated[
    str, matching(r"^[A-Za-z0-9\[][-A-Za-z0-9._/:@\[\]]*$", "an image such as registry.example.com/trainer:0.1", 1024)
]
TaintKey = Annotated[
    str,
    matching(
        r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/(\*|[A-Za-z0-9][-._A-Za-z0-9]*\*?)|[A-Za-z0-9][-._A-Za-z0-9]*\*?)$",
        "a taint's key such as example.com/maintenance, with or without a final *",
        317,
    ),
]
FailureCode = Annotated[
    int, BeforeValidator(_failure_code), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 255})
]
FailureCause = Annotated[
    str, BeforeValidator(_failure_cause), WithJsonSchema({"type": "string", "enum": list(FAILURE_CAUSES)})
]
Words = Annotated[list[Annotated[str, Field(max_length=MAX_TEXT)]], Field(min_length=1, max_length=1024)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Resources(ApiModel):
    """What each member may use and is promised, as in a container of Kubernetes."""

    not_yet: ClassVar = frozenset({"claims"})

    limits: Quantities = Field({}, description="The most it may use, by resource.")
    requests: Quantities = Field({}, description="What is kept free for it; without it, the limits.")

    @model_validator(mode="after")
    def _what_a_server_takes(self) -> Self:
        wrong = [
            located(problem("quantity", "not whole", allowed="a whole number"), ("limits", name), limit)
            for name, limit in self.limits.items()
            if "/" in name and not quantities.is_whole(quantities.amount(limit))
        ]
        if self.gpus > MAX_PROC:  # each has a worker
            error = problem("range", "out of range", allowed=f"at most {MAX_PROC}")
            wrong.append(located(error, ("limits", GPU), self.limits[GPU]))
        wrong += [e for name in self.requests for e in self._of_request(name, self.requests[name])]
        if wrong:
            raise ValidationError.from_exception_data("resources", wrong)
        return self

    def _of_request(self, name: str, request: str) -> Iterator[InitErrorDetails]:
        """Only Kubernetes' own resources may be promised without a limit, or below it."""
        limit, exact = self.limits.get(name), name not in OWN_RESOURCES
        if limit is None:
            if exact:
                yield located(
                    problem("missing", "missing", allowed=f"{request}, as in requests"), ("limits", name), None
                )
        elif exact and quantities.amount(request) != quantities.amount(limit):
            yield located(problem("range", "not the limit", allowed=limit), ("requests", name), request)
        elif quantities.amount(request) > quantities.amount(limit):
            yield located(
                problem("range", "more than the limit", allowed=f"{limit} or less"), ("requests", name), request
            )

    @property
    def gpus(self) -> int:
        return int(quantities.amount(self.limits.get(GPU, "0")))


class TrainerSpec(ApiModel):
    """What runs in each member: exactly one of `config`, `script`, `module` and `command`."""

    not_yet: ClassVar = frozenset({"configMapRef"})
    exactly_one: ClassVar = ("config", "script", "module", "command")

    image: Image | None = Field(
        None,
        description="An image of your own, with Python >= 3.9 and torch; agent and client come from the installation's. A "
        "PYTHONPATH in it is not seen: repeat it in `env`. Without this field, the installation's image.",
    )
    image_pull_secrets: Annotated[list[SecretReference], Field(max_length=64)] = Field(
        [], description="Secrets in the job's namespace with which images are pulled, beside the installation's."
    )
    config: Annotated[dict[str, Any], Field(max_length=MAX_FIELDS)] | None = Field(
        None, description="The training core's configuration, inline."
    )
    script: Words | None = Field(None, description="Your own script that uses the client, and its arguments.")
    module: Words | None = Field(None, description="A module to run as with `python -m`, and its arguments.")
    command: Words | None = Field(
        None,
        description="A program that is run as it is under plain torchrun variables: it starts cold and resumes by itself.",
    )
    python: Text | None = Field(None, description="The Python interpreter; without it, python3 on the PATH.")
    env: Annotated[list[EnvVar], Field(max_length=256)] = Field([], description="Environment variables of the workers.")
    env_from: Annotated[list[EnvFromSource], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description="All keys of Secrets and config maps as environment variables of the workers. What `env` says of a name "
        "wins, then the later entry here. Keys with the names that Relight sets are left out.",
    )
    resources: Resources | None = Field(None, description="Of each member; without it, the installation's.")
    shared_memory: Annotated[Quantity, AfterValidator(_some)] | None = Field(
        None,
        description="The size of /dev/shm, which holds the snapshots too and counts towards the memory limit; without it, as "
        "much as the machine or the limit leaves.",
    )
    template: Template | None = Field(None, description="What else each member's pod is to have.")

    @model_validator(mode="after")
    def _each_variable_once(self) -> Self:
        names = [variable.name for variable in self.env]
        errors = [
            located(problem("name", "given twice", allowed="each name once"), ("env", i, "name"), name)
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        if errors:
            raise ValidationError.from_exception_data("env", errors)
        return self


class GitSource(ApiModel):
    """A git repository. The commit that `ref` names at the job's first start is the job's from then on."""

    url: Annotated[str, BeforeValidator(_git_url), Field(min_length=1, max_length=2048)] = Field(
        description="`https://host/repository.git`, `ssh://git@host/repository.git` or `git@host:repository.git`."
    )
    ref: Annotated[str, BeforeValidator(_git_ref), Field(min_length=1, max_length=255)] = Field(
        "HEAD", description="A branch, a tag or a whole commit; without it, the repository's own branch."
    )
    secret_ref: SecretReference | None = Field(
        None,
        description="A Secret with `token`, or `username` and `password`, or `ssh-privatekey` and `known_hosts`; with "
        "`ca.crt` where a server's certificate is of a CA of your own.",
    )
    submodules: bool = Field(
        True,
        description="With the repository's submodules, over https or ssh. The Secret's token is shown to the server of `url` alone.",
    )

    @property
    def names_a_commit(self) -> bool:
        """Whether `ref` is one commit for ever: SHA-1 or SHA-256."""
        return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", self.ref) is not None


class CodeSpec(ApiModel):
    """Where the job's own code comes from: the working folder of its members."""

    git: GitSource = Field(description="A git repository.")


class HostPath(ApiModel):
    path: Annotated[
        str,
        BeforeValidator(_absolute),
        Field(max_length=4096),
        WithJsonSchema({"type": "string", "pattern": "^/", "maxLength": 4096}),
    ] = Field(description="An absolute path.")


class PersistentVolumeClaim(ApiModel):
    claim_name: ObjectName = Field(description="The claim's name.")


class Interval(ApiModel):
    """How often a checkpoint is committed; with several, whichever is due first."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    time: Annotated[Duration, AfterValidator(_positive)] | None = Field(None, description="After this much time.")
    steps: int | None = Field(None, ge=1, description="After this many optimizer steps.")
    epochs: int | None = Field(None, ge=1, description="After this many epochs.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.time is None and self.steps is None and self.epochs is None:
            raise problem("empty", "at least one of these is wanted", allowed="time, steps, epochs")
        return self


class BestSpec(ApiModel):
    """The checkpoints at which a metric was best, as it had been logged last."""

    metric: Text = Field(description="A metric's name in the job's progress, such as `accuracy`.")
    mode: Literal["max", "min"] = Field("max", description="Whether the highest or the lowest is best.")
    keep: int = Field(1, ge=1, description="How many.")


class SnapshotSpec(ApiModel):
    """How often each member copies its state into memory that outlives its workers."""

    every: Often = Field(
        "Auto",
        description="Optimizer steps between two. Auto: as often as it costs less than 1 % of the training's time, each step "
        "where a snapshot takes less than a millisecond, but not twice in 2.5 ms. A machine that dies without notice costs at most so many steps.",
    )


class CheckpointSpec(ApiModel):
    """Where durable state is kept: exactly one of `persistentVolumeClaim`, `hostPath` and `uri`."""

    not_yet: ClassVar = frozenset({"resume"})
    exactly_one: ClassVar = ("persistent_volume_claim", "host_path", "uri")

    persistent_volume_claim: PersistentVolumeClaim | None = Field(
        None, description="A claim that all members can mount."
    )
    host_path: HostPath | None = Field(None, description="A folder that is the same on every machine.")
    uri: (
        Annotated[
            str,
            BeforeValidator(_uri),
            Field(max_length=4096),
            WithJsonSchema({"type": "string", "pattern": f"^{_URI}$", "maxLength": 4096}),
        ]
        | None
    ) = Field(
        None,
        description="`file:///absolute/path`, or `s3://bucket/path` and the like, which the image needs a package for.",
    )
    secret_ref: SecretReference | None = Field(
        None,
        description="A Secret with the object store's options by fsspec's names: `key`, `secret`, `token`, `endpoint_url` for s3, "
        "`token` for gs, `account_name`, `account_key` for abfs, and the like. They reach the members alone, for the bucket of "
        "`uri`. Without it, the store's library looks for credentials itself: see docs/object-stores.md.",
    )
    interval: Interval = Field(Interval(time="10m"), description="How often a checkpoint is committed.")
    keep: int = Field(3, ge=2, description="How many good checkpoints are kept.")
    best: BestSpec | None = Field(None, description="Checkpoints that are kept beside the newest ones.")
    snapshot: SnapshotSpec = Field(SnapshotSpec(), description="How often members keep their state in memory.")

    @model_validator(mode="after")
    def _credentials_of_a_store(self) -> Self:
        if self.secret_ref is not None and (self.uri is None or self.uri.startswith("file:")):
            error = problem(
                "store", "only for an object store", allowed="no such field, or a uri such as s3://bucket/path"
            )
            wrong = located(error, ("secretRef",), self.secret_ref.name)
            raise ValidationError.from_exception_data("checkpoint", [wrong])
        return self


class Backoff(ApiModel):
    initial: Duration = Field("5s", description="The wait after the first failure; it doubles with each further one.")
    max: Duration = Field("5m", description="The longest wait.")


class FailureMatch(ApiModel):
    """Which failures a rule is for: exactly one of `exitCodes` and `cause`."""

    exactly_one: ClassVar = ("exit_codes", "cause")

    exit_codes: Annotated[list[FailureCode], Field(min_length=1, max_length=64)] | None = Field(
        None, description="Exit codes of Relight's table, or those that a script or command of your own ends with."
    )
    cause: FailureCause | None = Field(None, description="A cause, as status and events name it.")

    def covers(self, cause: Cause, code: int | None) -> bool:
        """Whether a failure of `cause`, seen as exit code `code`, is meant."""
        return str(cause) == self.cause if self.exit_codes is None else code in self.exit_codes

    @property
    def text(self) -> str:
        codes = self.exit_codes or ()
        return f"cause {self.cause}" if self.cause else f"exit code {' or '.join(map(str, codes))}"


class RetryRule(ApiModel):
    """What is done about failures of one kind, whatever would be done without the rule."""

    match: FailureMatch = Field(description="Which failures.")
    action: Literal["Fail", "Retry", "Ignore"] = Field(
        description="`Fail`: the `after`-th of them inside `retry.window` ends the job, and those before it are paid from "
        "this rule alone. `Retry`: they are retried and paid from `retry.failures`. `Ignore`: they are retried and cost "
        "nothing. `retry.noProgressLimit` holds in any case."
    )
    after: int | None = Field(
        None, ge=1, le=1000, description="For `Fail`: which one ends the job; by default the first."
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if self.after is not None and self.action != "Fail":
            raise ValidationError.from_exception_data(
                "rule",
                [located(problem("after", "only for action Fail", allowed="no such field"), ("after",), self.after)],
            )
        if self.action == "Ignore" and _is_final(self.match):
            allowed = "Fail or Retry: what does not help may not be tried without end"
            raise ValidationError.from_exception_data(
                "rule",
                [located(problem("final", "not for a failure that is final", allowed=allowed), ("action",), "Ignore")],
            )
        return self


def _is_final(match: FailureMatch) -> bool:
    """Whether without a rule one of those failures would end the job at once."""
    codes = [exit_of(code) for code in match.exit_codes or () if code in set(ExitCode)]
    return any(e.klass is Class.FINAL for e in codes) or any(
        str(e.cause) == match.cause and e.klass is Class.FINAL for e in EXITS.values()
    )


class AvoidMachines(ApiModel):
    """New members stay away from a machine that was to blame too often."""

    after_failures: int = Field(
        2,
        ge=1,
        le=100,
        description="So often within `for` must a member's end have been the machine's doing (it said so, it was killed from "
        "outside, its machine was lost, a worker stalled or crashed without an exception).",
    )
    for_: Annotated[Duration, AfterValidator(_positive)] = Field(
        "1h", alias="for", description="For so long after the last of these it is avoided."
    )


class RetrySpec(ApiModel):
    """How often the job's own failures are retried. Disruptions are free."""

    failures: int = Field(3, ge=0, description="Failures inside the window that are retried; one more ends the job.")
    window: Duration = Field("1h", description="A failure older than this is not counted.")
    reset_on_progress: bool = Field(True, description="A newer committed checkpoint clears the count.")
    backoff: Backoff = Field(Backoff(), description="The wait before a retry.")
    no_progress_limit: int = Field(
        3, ge=1, description="Failed generations in a row without newer state that end the job."
    )
    rules: Annotated[list[RetryRule], Field(max_length=20)] = Field(
        [], description="What is done about failures of one kind; the first that matches decides."
    )
    avoid_machines: AvoidMachines = Field(
        AvoidMachines(), description="Which machines new members stay away from, as long as they find others."
    )

    @model_validator(mode="after")
    def _every_rule_can_match(self) -> Self:
        wrong = [
            located(
                problem("unreachable", message, allowed="another order, or no such rule"),
                ("rules", i, "match"),
                rule.match.text,
            )
            for i, rule in enumerate(self.rules)
            if (message := _hidden(rule.match, self.rules[:i]))
        ]
        if wrong:
            raise ValidationError.from_exception_data("retry", wrong)
        return self


def _hidden(match: FailureMatch, earlier: list[RetryRule]) -> str:
    """Why `match` never matches; "" where it can."""
    seen = [(f"rules[{i}]", r.match) for i, r in enumerate(earlier)]
    if match.cause is not None:
        # The codes of a cause do not cover it: a container or a user's own code may end with others.
        names = [name for name, m in seen if m.cause == match.cause]
        return f"never matches: {names[0]} takes them before it" if names else ""
    taken = [next((n for n, m in seen if m.covers(exit_of(code).cause, code)), None) for code in match.exit_codes or ()]
    return f"never matches: {taken[0]} takes them before it" if taken and all(taken) else ""


class DeadMachine(ApiModel):
    """When a machine that does not answer any more is taken for dead, and its member replaced."""

    unreachable_for: Annotated[Duration, AfterValidator(_positive)] = Field(
        "30s", description="The node has not been ready, and nothing was heard of the member's agent, for this long."
    )
    force_delete: bool = Field(
        True,
        description="Delete what is left of its pod without waiting for the machine; otherwise it stays until the cluster "
        "removes it. The member is replaced either way.",
    )


class DisruptionSpec(ApiModel):
    """What the job does when a member is taken away."""

    grace_period: Duration = Field(
        "2m",
        description="How long a member may take to save after it has been told to end. For at most half of it the member trains on "
        "while its successor is made ready.",
    )
    watch_taints: Annotated[list[TaintKey], Field(max_length=32)] = Field(
        [],
        description="Keys of node taints that announce a machine's end, beside the well-known ones of clouds, Karpenter and "
        "the autoscaler; a final * stands for anything. The member's replacement is made ready while it trains on.",
    )
    dead_machine: DeadMachine = Field(
        DeadMachine(), description="When a machine that does not answer is taken for dead."
    )
    hold_survivors: Annotated[Duration, AfterValidator(_positive)] = Field(
        "10m",
        description="How long members wait for a machine that is missing. Then the state is saved, all members are released, "
        "and it is tried again later: two jobs that each lack one machine do not wait for each other for ever.",
    )
    pod_disruption_budget: Literal["Auto", "None"] = Field(
        "Auto",
        description="Auto: a PodDisruptionBudget while the job trains, by which evictions and drains take one member at a time, "
        "the next when its successor is there.",
    )


class HealthSpec(ApiModel):
    """How long workers may show no progress, and what happens when none does. The agents' rule: relight_agent/stalls.py."""

    startup: PositiveDuration = Field(
        "30m",
        description="How long a worker may take to join its world and restore, and after that for its first step, with all that "
        "is compiled for it.",
    )
    heartbeat: PositiveDuration = Field(
        "1m", description="The shortest silence that is taken for a stall, however fast the steps are."
    )
    no_progress: PositiveDuration = Field(
        "30m",
        description="The longest silence that is not, and the limit of what has not been seen in this run yet: the first steps "
        "and evaluation, and until its first epoch has ended all of an own script that evaluates outside `run.evaluation()`.",
    )
    on_stall: Literal["Restart", "Report", "Fail"] = Field(
        "Restart",
        description="Restart: the generation ends as a failure with cause `Stall`, is retried as `retry` says, and the next one goes "
        "on from the newest state. Report: the condition `Stalled` says it, and nothing is ended. Fail: the job fails.",
    )


class ElasticSpec(ApiModel):
    """The job may go on with fewer members, and grow back."""

    min_nodes: int = Field(ge=1, le=MAX_NODES, description="The fewest members with which the job goes on.")
    max_nodes: int = Field(
        ge=1,
        le=MAX_NODES,
        description="The most that `nodes` may be set to. A step is divided as these would divide it, whatever the size: "
        "`train.virtual_ranks: auto` is maxNodes x procPerNode.",
    )
    replacement_timeout: Duration = Field(
        "2m", description="How long a lost member's replacement is waited for before the job goes on without."
    )
    grow_cooldown: Duration = Field(
        "10m", description="How long a smaller world runs before it takes in who has become ready since."
    )
    batch: Literal["Exact", "Flexible"] = Field(
        "Exact",
        description="Exact: only sizes at which each step is trained as the configuration says. Flexible: others too; sync_bn's "
        "forward passes may exceed `micro_batch`, and the batch of an own script follows its world.",
    )


class JobSpec(ApiModel):
    not_yet: ClassVar = frozenset(
        {
            "managedBy", "data", "scheduling",
            "ttlSecondsAfterFinished", "cleanPods",
        }
    )  # fmt: skip

    suspend: bool = Field(False, description="Save, release all machines and wait until it is false again.")
    nodes: int = Field(1, ge=1, le=MAX_NODES, description="Members of the job: torchrun's nodes.")
    elastic: ElasticSpec | None = Field(
        None, description="Between which sizes the job may change; without it, `nodes` is frozen."
    )
    spares: int = Field(
        0,
        ge=0,
        lt=MAX_NODES,
        description="Members beyond `nodes` that wait to take a lost one's place at once: libraries are imported and, for a `config`, the GPUs opened, which takes some of the memory of those that are shared.",
    )
    proc_per_node: int | None = Field(
        None, ge=1, le=MAX_PROC, description=f"Workers in each member; without it, the limit of {GPU}, else 1."
    )
    trainer: TrainerSpec = Field(description="What runs in each member.")
    code: CodeSpec | None = Field(
        None,
        description="Code of your own: scripts, modules and what a configuration names are looked for there. Without it, in "
        "the image's working folder, or with `relight run` in the job file's.",
    )
    checkpoint: CheckpointSpec | None = Field(
        None,
        description="Where durable state is kept; without it, the loss of all members at once is a start from scratch.",
    )
    retry: RetrySpec = Field(RetrySpec(), description="How often the job's own failures are retried.")
    disruption: DisruptionSpec = Field(DisruptionSpec(), description="What happens when a member is taken away.")
    health: HealthSpec = Field(
        HealthSpec(),
        description="How long workers may be silent, and what happens when all are for longer. A step, a batch of an evaluation and "
        "a checkpoint are signs of progress; each may take five times the longest that went well in this run, and twice that "
        "after each stall. The rank that holds the others up is named in `status.stall`; every rank's stacks are kept in `stacks/` "
        "of the job's folder. Of a plain `command` nothing is known. A change counts from the next generation on, one of "
        "`onStall` at once.",
    )
    network_policy: Literal["Auto", "None"] = Field(
        "Auto",
        description="Auto: a NetworkPolicy of the job's name. The members accept connections from each other, and on the metrics "
        "port from the peers that the installation names (the chart's `networkPolicy.jobs`): the process group has no "
        "authentication. It takes effect where the cluster's network plugin enforces NetworkPolicies. None: no policy.",
    )
    active_deadline_seconds: int | None = Field(None, ge=1, description="The job fails after this much active time.")

    @property
    def workers_per_node(self) -> int:
        """`procPerNode`, resolved."""
        resources = self.trainer.resources
        return self.proc_per_node or (resources.gpus if resources is not None else 0) or 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.workers_per_node

    @property
    def most_nodes(self) -> int:
        """Members of the largest world that the job may ever have."""
        return self.elastic.max_nodes if self.elastic is not None else self.nodes


class Metadata(ApiModel):
    """The parts of Kubernetes' ObjectMeta that mean something to a job; the rest is read and left alone."""

    not_yet: ClassVar = frozenset({"generateName"})

    name: Annotated[str, matching(NAME_PATTERN, f'{LOWER} and "-", a letter first', MAX_NAME)]
    namespace: Annotated[str, matching(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", f'{LOWER} and "-"', 63)] = "default"
    uid: str | None = None
    creation_timestamp: str | None = None
    labels: dict[str, str] = Field({})
    annotations: dict[str, str] = Field({})
    generation: int | None = None
    resource_version: str | None = None
    finalizers: list[str] = Field([], exclude=True)
    owner_references: list[dict[str, Any]] = Field([], exclude=True)
    managed_fields: list[dict[str, Any]] = Field([], exclude=True)
    deletion_timestamp: str | None = Field(None, exclude=True)
    deletion_grace_period_seconds: int | None = Field(None, exclude=True)
    self_link: str | None = Field(None, exclude=True)


class TrainingJob(ApiModel):
    api_version: Literal["relight.dev/v1alpha1"] = "relight.dev/v1alpha1"
    kind: Literal["TrainingJob"] = "TrainingJob"
    metadata: Metadata
    spec: JobSpec
    status: dict[str, Any] | None = Field(None, exclude=True)  # as read from a server; status.JobStatus is its model

    def dump(self) -> dict[str, Any]:
        """The JSON object, defaults included, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
