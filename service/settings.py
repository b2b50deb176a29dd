"""The service's settings: ``FUNNEL_*`` environment variables, and options of the same names."""

import base64
import difflib
import ipaddress
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from service.fold.spec import (
    FAMILIES,
    LINEAR,
    MAX_EXPERTS,
    OPTIMIZERS,
    RECENT,
    Hyperparameters,
    Shadow,
    Spec,
)
from service.fold.task import AUTO, CLASSES, Task
from streams.environment import PREFIX, PathError, home, named_keys, read_secret, variables
from streams.errors import FunnelError

if TYPE_CHECKING:
    from service.fold.schema.schema import Schema

FILE = "_file"
"""Suffix of a setting that names a file with the value of another one."""
KEYS = ("api_key", "learn_key", "predict_key")
"""Settings that hold keys of clients."""
SECRETS = ("redis_url", *KEYS, "drift_webhook", "drift_webhook_secret")
"""Settings whose value a file may hold."""
WHSEC = "whsec_"
"""Beginning of a secret in base64 that signs what a webhook gets."""
STORES = ("s3", "gs", "az")
"""The schemes of addresses of object storage, other than a folder."""
NEVER_EMPTY = ("api_key", "api_key_file")
"""A template that was not filled in must not open the service."""
Given = dict[str, object]
"""Values by the names of settings, as text or of the setting's type."""


def _file_of(name: str) -> Any:
    """Return the field of the setting that names a file with the value of another."""
    return Field(None, description=f"file that holds {name}, such as a secret of a container")


MAX_SHADOWS = 8
LEAST_SNAPSHOT_SECONDS = 0.05
WORKERS_SECONDS = 1.0
"""Time between snapshots for workers, unless it is set."""
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
DURATION = re.compile(r"([0-9]+(?:[.][0-9]+)?)(ms|s|m|h|d)")
SIZES = {"": 0, "kB": 10, "MB": 20, "GB": 30}
SIZE = re.compile(r"([0-9]+)(kB|MB|GB)?")
MOST_SECONDS = 365 * UNITS["d"]
WEIGHTED = "weighted"
"""In place of a time in `Settings.label_timeout`: the label is learned at once."""
INPUTS, TASK = "inputs", "task"
"""The choices that settings can leave open; see `Settings.opens`."""
FACTORY = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
MODEL_NAME = re.compile(rf"logistic|mlp|auto|{FACTORY}")
MOST_ADDED = 8
"""Families that a user may add."""


warnings.filterwarnings("ignore", 'Field name "schema" in "Settings" shadows', UserWarning)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PERCEPTRONS = ("mlp", AUTO)
"""The models that have hidden layers."""


MESSAGES = {
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "greater_than_equal": "give at least {ge:,}",
    "greater_than": "give more than {gt:,}",
    "less_than_equal": "give at most {le:,}",
    "less_than": "give less than {lt:,}",
    "literal_error": "give {expected}",
}
"""The messages of pydantic's errors, by their types."""


class SettingsError(FunnelError, ValueError):
    """A setting is wrong; the message names it in one line."""


class Settings(BaseModel):
    """All settings; ``funnel serve --help`` and the documents show their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    redis_url: SecretStr = Field(
        SecretStr(""),
        description="log on this server (redis://, rediss://, unix://); empty: an embedded one",
    )
    redis_url_file: Path | None = _file_of("REDIS_URL")
    data_dir: Path = Field(
        Path("funnel-data"), description="folder of the checkpoints and the embedded log"
    )
    state: str = Field(
        "",
        description="keep the checkpoints in object storage instead of DATA_DIR, for a standby on "
        "another machine: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or "
        "file:///folder; credentials come from the usual variables of AWS, Google and Azure",
    )
    role: Literal["all", "predict", "intake"] = Field(
        "all",
        description="predict: only answer, with what another process learns; it needs that one's "
        "STATE, or DATA_DIR on the same machine, and REDIS_URL for questions with ids. intake: "
        "only take examples and labels; it needs that one's REDIS_URL",
    )
    workers: int = Field(
        1, ge=1, le=64,
        description="processes that share the port in front of one learner; each takes examples "
        "and answers",
    )  # fmt: skip
    snapshot_every: str = Field(
        "",
        description="how often the learner publishes a snapshot for processes that only answer: "
        "500ms, 1s, 10s; empty: they answer with checkpoints, and WORKERS get one every second",
    )
    archive: str = Field(
        "7d,1GB",
        description="what is kept of the log after it was trimmed, next to the checkpoints, for "
        "funnel replay: an age, 7d; a size, 10GB; both, whichever is reached first; or off",
    )
    appendfsync: Literal["always", "everysec", "no"] = Field(
        "always", description="when the embedded log is synced to disk; always: before it answers"
    )
    name: str = Field(
        "",
        description="name of the model, in the keys of its log, its folder of checkpoints, "
        "GET /model and metrics; empty: that of MODEL. Applications that share a log's server need "
        "one each",
    )
    model: str = Field(
        AUTO,
        description="auto: linear experts, networks, trees, neighbours and recent labels in one "
        "pool, on the CPU; logistic; mlp; or package.module:factory. If none is set, a log or data "
        "folder of logistic keeps that, and so do settings that auto does not fit",
    )
    features: int = Field(784, ge=1, le=1_000_000, description="numbers in an example")
    classes: int = Field(
        10, ge=2, le=100_000,
        description="number of classes; labels are whole numbers from 0. Rows need none: auto lets "
        "theirs grow with the labels that come",
    )  # fmt: skip
    task: str = Field(
        AUTO,
        description="what is predicted: binary or multiclass (classes), regression (numbers) or "
        "quantile:0.1,0.5,0.9; auto: regression if the first labels have fractions, else classes",
    )
    schema: str = Field(  # type: ignore[assignment]  # pydantic's own `schema` is deprecated
        "",
        description="rows with named columns: auto infers their kinds from the first batch; a TOML "
        "file declares them (see funnel schema). Without it, FEATURES and CLASSES, the first "
        "examples decide between auto and dense features",
    )  # fmt: skip
    max_classes: int = Field(
        1_000, ge=2, le=100_000,
        description="classes to which a model of rows may grow, if its schema names no other limit",
    )  # fmt: skip
    table_bits: int = Field(
        20, ge=0, le=26,
        description="categories and words of rows share 2^bits slots; 0 learns from numbers alone",
    )  # fmt: skip
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (128,), description="sizes of the hidden layers of mlp, and of auto's networks, with commas"
    )
    batch_size: int = Field(100, ge=1, le=1_000_000, description="examples a step")
    max_wait_ms: int = Field(
        1_000,
        ge=0,
        le=86_400_000,
        description="longest wait for a full batch before a smaller one is learned",
    )
    optimizer: str = Field("pool", description=f"one of {', '.join(OPTIMIZERS)}")
    shadow: tuple[str, ...] = Field(
        (), description="baselines that learn from the same batches, with commas: adagrad, or "
        "adagrad:0.05 to set its learning rate; each costs a step a batch",
    )  # fmt: skip
    promote: Literal["never", "auto"] = Field(
        "never",
        description="auto: a shadow that is better than the learner that answers, by a test at "
        "level 0.05, is promoted; never: only POST /promote does that",
    )
    families: tuple[str, ...] = Field(
        (LINEAR, *FAMILIES),
        description="of FUNNEL_MODEL=auto, with commas; package.module:factory adds one of your "
        "own; linear is always among them",
    )
    effort: Literal["auto", "full", "fast"] = Field(
        "auto",
        description="of FUNNEL_MODEL=auto: full: all families learn every batch; fast: all but the "
        "linear experts skip it; auto: they skip batches while more than 2 s of learning waits",
    )
    predict_ms: int = Field(
        100, ge=0, le=3_600_000,
        description="of FUNNEL_MODEL=auto: a short question that waits longer is answered by the "
        "linear experts alone; 0: all families answer, however long it takes",
    )  # fmt: skip
    experts: int = Field(
        MAX_EXPERTS, ge=1, le=MAX_EXPERTS,
        description="experts of the served pool; memory and time grow with them",
    )  # fmt: skip
    lr: FiniteFloat = Field(0.03, gt=0, le=1e6, description="initial η; the pool does not use it")
    gain_lr: FiniteFloat = Field(
        0.03, ge=0, le=10, description="γp, how fast gains adapt; only funnel uses it"
    )
    scale_lr: FiniteFloat = Field(
        0.03, ge=0, le=10, description="γs, how fast scales adapt; only funnel uses it"
    )
    loss_guard: FiniteFloat = Field(
        0.0, ge=0, le=1e6,
        description="skip a batch whose loss is this many deviations above the recent ones, "
        "unless two were just skipped; 0: learn all",
    )  # fmt: skip
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: an example counts as its class is rare, as if all classes were as "
        "frequent; probabilities are those of such data",
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="μ; the pool does not use it")
    standardize: bool = Field(True, description="standardize the inputs online")
    calibrate: bool | Literal["auto"] = Field(
        "auto",
        description="calibrate the probabilities that are answered; auto: true in a new log, and "
        "what an older one recorded",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto: a GPU if there is one")
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="CPU threads of one operation; the last bits of results depend on it",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names by which clients reach the service, with commas; empty: any, but "
        "only those of this machine while it listens on loopback without a key",
    )  # fmt: skip
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free one")
    api_key: SecretStr = Field(
        SecretStr(""),
        description="if set, requests need Authorization: Bearer <key>; this key may do "
        "everything. name:key, several with commas: commands are recorded with the name",
    )
    api_key_file: Path | None = _file_of("API_KEY")
    learn_key: SecretStr = Field(
        SecretStr(""),
        description="a key that may only POST /learn and /labels; API_KEY must be set too",
    )
    learn_key_file: Path | None = _file_of("LEARN_KEY")
    predict_key: SecretStr = Field(
        SecretStr(""),
        description="a key that may POST /predict and GET everything; API_KEY must be set too",
    )
    predict_key_file: Path | None = _file_of("PREDICT_KEY")
    max_body_bytes: int = Field(32 << 20, ge=1, description="largest request body")
    max_backlog: int = Field(
        1_000_000, ge=1, description="examples that may wait to be learned before 429"
    )
    max_backlog_bytes: int = Field(
        0, ge=0,
        description="bytes of the log that may wait to be learned before 429; 0: a quarter of the "
        "memory of the container or machine",
    )  # fmt: skip
    checkpoint_every_seconds: FiniteFloat = Field(
        30.0, gt=0, description="time between checkpoints"
    )
    checkpoint_every_bytes: int = Field(
        0, ge=0,
        description="bytes of the log after which a checkpoint is written sooner; 0: 256 MiB, or "
        "four checkpoints if that is more",
    )  # fmt: skip
    lease_seconds: FiniteFloat = Field(
        5.0, ge=1, le=3600,
        description="a standby takes over when the trainer has been silent for this long",
    )  # fmt: skip
    label_ttl: str = Field(
        "1h", description="how long a question waits for its label: 90s, 30m, 1h, 2d"
    )
    label_grace: str = Field(
        "60s", description="how long a label waits for its question, if it comes first"
    )
    labels: Literal["first", "last", "sum"] = Field(
        "first",
        description="a second label of a question that differs: first ignores it; last learns the "
        "question again with it; sum adds all labels up until the question's time is over",
    )
    label_timeout: str = Field(
        "",
        description="30m:no: a question without a label after 30 minutes is learned with the label "
        "no; weighted:no: at once, and again with another label; empty: it is not learned",
    )
    join_bytes: str = Field(
        "256MB",
        description="most bytes of questions that wait for their labels; the oldest are closed",
    )
    track: Literal["sync", "async"] = Field(
        "sync",
        description="when a question with an id is answered; sync: once the log has it; async: at "
        "once, and it may be lost",
    )
    drift_webhook: SecretStr = Field(
        SecretStr(""), description="URL to which each new drift event and recovery is posted"
    )
    drift_webhook_file: Path | None = _file_of("DRIFT_WEBHOOK")
    drift_webhook_secret: SecretStr = Field(
        SecretStr(""), description="signs what is posted; whsec_ and base64, or any text"
    )
    drift_webhook_secret_file: Path | None = _file_of("DRIFT_WEBHOOK_SECRET")
    drift_webhook_form: Literal["auto", "json", "slack"] = Field(
        "auto", description="of what is posted; auto: slack for hooks.slack.com, json elsewhere"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="of the messages on standard error; json: one object a line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least level of messages on standard error"
    )
    seed: int = Field(0, ge=0, lt=1 << 23, description="seed of the weights and of dropout")
    accept_gap: bool = Field(
        False, description="continue although acknowledged examples are missing from the log"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, given: Given) -> Given:
        """Read the values that files hold."""
        read = {}
        for name in SECRETS:
            path = given.get(name + FILE)
            if path is None:
                continue
            variable = f"{PREFIX}{(name + FILE).upper()}"
            if name in given:
                raise ValueError(f"{variable}: {PREFIX}{name.upper()} is set too; remove one")
            if not str(path).strip():
                raise ValueError(f"{variable}: the path is blank; give one, or remove the setting")
            try:
                read[name] = read_secret(str(path))
            except PathError as error:
                raise ValueError(f"{variable}: {error}") from error
        return given | read

    @model_validator(mode="before")
    @classmethod
    def _grow(cls, given: Given) -> Given:
        """Read ``auto`` classes, which those of rows are without it, too."""
        if given.get("classes") != AUTO:
            return given
        if not given.get("schema") and "features" in given:
            raise ValueError(
                f"{PREFIX}CLASSES: auto is for rows, whose labels may be anything "
                f"({PREFIX}SCHEMA); dense features need a number"
            )
        rest = {name: value for name, value in given.items() if name != "classes"}
        return {"task": "multiclass"} | rest | {"schema": given.get("schema") or AUTO}

    @field_validator("data_dir", mode="before")
    @classmethod
    def _folder(cls, value: object) -> object:
        if isinstance(value, str | Path) and not str(value).strip():
            raise ValueError("give a folder")
        return home(value) if isinstance(value, str | Path) else value

    @field_validator("state")
    @classmethod
    def _stored(cls, value: str) -> str:
        """Return the address of object storage without its last slashes, or nothing."""
        if not value:
            return value
        parts = urlsplit(value.strip())
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("give no credentials and no query; they come from the environment")
        if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
            return f"file://{parts.path.rstrip('/')}"
        steps = parts.path.rstrip("/").split("/")[1:]
        if parts.scheme not in STORES or not parts.netloc or {"", ".", ".."} & {*steps}:
            raise ValueError(
                "give s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or "
                "file:///folder"
            )
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"

    @field_validator("archive")
    @classmethod
    def _kept(cls, value: str) -> str:
        limits_of(value)
        return value

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        """Return a host name or an address without the brackets that a URL needs."""
        address = value.strip()
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        if not address:  # which would be every interface
            raise ValueError("give an address or a host name; 0.0.0.0 is every interface")
        if ":" in address:
            try:
                ipaddress.IPv6Address(address)
            except ValueError as error:
                raise ValueError("give an address or a host name, without a port") from error
        elif re.search(r"[\s/]", address):
            raise ValueError("give an address or a host name")
        return address

    @field_validator("hidden", "shadow", "families", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("name")
    @classmethod
    def _called(cls, value: str) -> str:
        if value and not NAME.fullmatch(value):
            raise ValueError("use 1 to 64 letters, digits and . _ -, and a letter or digit first")
        return value

    @field_validator("model")
    @classmethod
    def _named(cls, value: str) -> str:
        if not MODEL_NAME.fullmatch(value):
            raise ValueError("choose auto, logistic, mlp or package.module:factory")
        return value

    @field_validator("task")
    @classmethod
    def _predicted(cls, value: str) -> str:
        return value if value == AUTO else str(Task.parse(value))

    @field_validator("snapshot_every")
    @classmethod
    def _publishing(cls, value: str) -> str:
        if value and not LEAST_SNAPSHOT_SECONDS <= seconds(value) <= MOST_SECONDS:
            raise ValueError("give at least 50ms and at most 365d")
        return value

    @field_validator("label_ttl", "label_grace")
    @classmethod
    def _lasting(cls, value: str) -> str:
        if seconds(value) > MOST_SECONDS:
            raise ValueError("at most 365d")
        return value

    @field_validator("labels")
    @classmethod
    def _counting(cls, value: str, info: ValidationInfo) -> str:
        task = info.data.get("task", AUTO)
        if value == "sum" and (task == AUTO or not Task.parse(task).is_numeric):
            raise ValueError(
                f"sum adds numbers up, and {PREFIX}TASK is {task}: set {PREFIX}TASK=regression or "
                "quantile:0.1,0.5,0.9, or give first or last"
            )
        return value

    @field_validator("label_timeout")
    @classmethod
    def _defaulting(cls, value: str, info: ValidationInfo) -> str:
        after, colon, label = value.partition(":")
        if value and not (colon and label):
            raise ValueError(f"give a time and a label, 30m:no, or {WEIGHTED}:no")
        if label.endswith(f",{WEIGHTED}"):
            own = label.removesuffix(f",{WEIGHTED}")
            raise ValueError(f"weighted questions are learned at once: give {WEIGHTED}:{own}")
        if after == WEIGHTED:
            if info.data.get("labels", "first") != "first":
                raise ValueError(
                    f"{WEIGHTED} learns the first label alone: set {PREFIX}LABELS=first"
                )
            if info.data.get("task", "binary") != "binary":
                raise ValueError(f"{WEIGHTED} is for two classes: set {PREFIX}TASK=binary")
            return value
        if value and "label_ttl" in info.data and seconds(after) > seconds(info.data["label_ttl"]):
            raise ValueError(f"the time is longer than {PREFIX}LABEL_TTL, when questions close")
        return value

    @field_validator("join_bytes")
    @classmethod
    def _sized(cls, value: str) -> str:
        if not size_of(value):
            raise ValueError("give at least one byte")
        return value

    @field_validator("optimizer")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in OPTIMIZERS:
            raise ValueError(f"choose one of {', '.join(OPTIMIZERS)}")
        return value

    @field_validator("families")
    @classmethod
    def _of_auto(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in value if value.count(name) > 1]:
            raise ValueError(f"family {twice[0]!r} is named twice; name it once")
        added = sorted(set(value) - {LINEAR, *FAMILIES})
        if unknown := [name for name in added if not re.fullmatch(FACTORY, name)]:
            raise ValueError(
                f"{unknown[0]!r} is none of {LINEAR}, {', '.join(FAMILIES)}, and no "
                "package.module:factory"
            )
        if len(added) > MOST_ADDED:
            raise ValueError(f"at most {MOST_ADDED} families of your own")
        called = [LINEAR, *FAMILIES, RECENT, *(name.partition(":")[2] for name in added)]
        if twice := [name for name in called if called.count(name) > 1]:
            raise ValueError(f"two families are called {twice[0]!r}: rename one of the factories")
        return (LINEAR, *(name for name in FAMILIES if name in value), *added)

    @field_validator("shadow")
    @classmethod
    def _baselines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a baseline is named twice")
        if len(value) > MAX_SHADOWS:
            raise ValueError(f"at most {MAX_SHADOWS} baselines")
        return tuple(Shadow.parse(text).name for text in value)

    @property
    def publish_seconds(self) -> float:
        """Seconds between the snapshots that a learner publishes; 0 for none."""
        if self.snapshot_every:
            return seconds(self.snapshot_every)
        return WORKERS_SECONDS if self.workers > 1 else 0.0

    @property
    def never_learns(self) -> bool:
        """True for a process that only answers, or only takes examples."""
        return self.role != "all"

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> "Settings":
        if self.role == "intake" and not self.redis_url:
            raise ValueError(
                f"{PREFIX}ROLE=intake takes examples for a log: set {PREFIX}REDIS_URL to that of "
                "the learner"
            )
        return self

    @field_validator("redis_url")
    @classmethod
    def _server(cls, value: SecretStr) -> SecretStr:
        if value:
            parts = urlsplit(value.get_secret_value())
            database = parts.path.strip("/")
            if parts.scheme == "unix":
                if not parts.path:
                    raise ValueError("give the path of the socket: unix:///run/redis.sock")
            elif parts.scheme not in ("redis", "rediss") or not _has_port(parts):
                raise ValueError("give an address: redis://host:port, rediss://… or unix:///path")
            elif database and not database.isdecimal():
                raise ValueError(
                    f"{database!r} is not the number of a database: redis://host:port/0"
                )
        return value

    @field_validator("api_key", "learn_key", "predict_key")
    @classmethod
    def _trimmed(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        """Remove the line break at the end of a key from a file, which no header can hold."""
        key = value.get_secret_value()
        if not key.strip() and (key or info.field_name in NEVER_EMPTY):
            raise ValueError("the key is blank; give one, or remove the setting to need none")
        named_keys(key.strip(), "")
        return SecretStr(key.strip())

    @field_validator("drift_webhook")
    @classmethod
    def _web(cls, value: SecretStr) -> SecretStr:
        if value:
            parts = urlsplit(value.get_secret_value())
            if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
                raise ValueError("give an address that begins with http:// or https://")
        return value

    @field_validator("drift_webhook_secret")
    @classmethod
    def _signing(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value().strip()
        if secret.startswith(WHSEC):
            try:
                base64.b64decode(secret.removeprefix(WHSEC), validate=True)
            except ValueError as error:
                raise ValueError(f"give base64 after {WHSEC}") from error
        return SecretStr(secret)

    @field_validator("learn_key", "predict_key")
    @classmethod
    def _scoped(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if value and not info.data.get("api_key"):
            raise ValueError(f"set {PREFIX}API_KEY too, the key that may do everything")
        for name in ("api_key", "learn_key"):
            if value and not _keys_of(value).isdisjoint(_keys_of(info.data.get(name))):
                raise ValueError(f"choose a key other than {PREFIX}{name.upper()}")
        return value

    @property
    def without_effect(self) -> dict[str, str]:
        """Variables that were set although nothing uses them, in alphabetical order, and why."""
        learners = {self.optimizer, *(Shadow.parse(name).optimizer for name in self.shadow)}
        idle: dict[str, str] = {}

        def note(why: str, *names: str) -> None:
            idle.update(dict.fromkeys(names, why))

        if self.model not in PERCEPTRONS:
            note(f"the model {self.model} takes no sizes of layers", "hidden")
        if not self.shadow:
            note("no shadow is set", "promote")
        if INPUTS not in self.opens and self.schema:
            note("rows with named columns decide on them", "features", "classes")
        elif INPUTS not in self.opens:
            note("dense features are learned", "max_classes", "table_bits")
        if self.predicts.is_numeric:
            what = f"the task {self.task} has no classes"
            note(what, "classes", "max_classes", "class_weights")
        if self.schema not in ("", AUTO):
            note("the file of the schema has its own limit", "max_classes")
        if self.optimizer != "pool":
            note(f"the optimizer {self.optimizer} is not a pool", "experts")
        if self.model != AUTO:
            what = f"the model {self.model} has one family"
            note(what, "effort", "families", "predict_ms")
        if learners == {"pool"}:
            note("the experts of the pool have their own", "lr", "momentum")
        if not learners & {"funnel"}:
            note("no learner is a single Funnel", "gain_lr", "scale_lr")
        set_ones = sorted(idle.keys() & self.model_fields_set)
        return {PREFIX + name.upper(): idle[name] for name in set_ones}

    @property
    def predicts(self) -> Task:
        """The task of the model."""
        return CLASSES if self.task == AUTO else Task.parse(self.task)

    @property
    def opens(self) -> frozenset[str]:
        """The choices that are left to the log (see `service.trainer.choice`).

        A module of the user's takes dense features and has the outputs of the task that it was
        written for.
        """
        is_users = ":" in self.model
        closed = {
            INPUTS: is_users or self._sets("schema", "features", "classes"),
            TASK: is_users or self.task != AUTO or self._sets("classes", "max_classes"),
        }
        return frozenset(name for name, is_closed in closed.items() if not is_closed)

    @property
    def called(self) -> str:
        """The name of the model, in the keys of its log and its folder of checkpoints."""
        return self.name or self.model

    def _sets(self, *names: str) -> bool:
        return not self.model_fields_set.isdisjoint(names)

    def taking(self, spec: Spec | None, claimed: str = "") -> "Settings":
        """Return these settings, and those that are not set as another model has them.

        Args:
            spec: of that model, if it is recorded.
            claimed: what the model learns from if it begins, as `service.log.log.Log.claim` has it.
        """
        taken: Given = {}
        if spec is None:
            kind, _, end = claimed.partition(":")
            taken = {"schema": AUTO} if kind == "rows" else {}
            taken["task"] = "regression" if end else "multiclass"
        else:
            found = asdict(spec)
            names = {"optimizer", "standardize", "seed"}
            names |= {name for name in ("hidden", "experts", "families") if found[name]}
            names |= {"features", "classes"} if spec.shape else {"table_bits"}
            taken = {name: found[name] for name in names if found[name] or name != "classes"}
            taken |= {"task": spec.task, "calibrate": spec.calibrate}
            if spec.shape is None and INPUTS in self.opens:
                taken["schema"] = AUTO
        own = {k: getattr(self, k) for k in self.model_fields_set if not k.endswith(FILE)}
        own = {k: v for k, v in own.items() if v != AUTO or k in ("schema", "model")}
        return Settings.model_validate(taken | own)

    @property
    def spec(self) -> Spec:
        """The spec of the model, for its whole life."""
        is_named = bool(self.schema)
        return Spec(
            self.model,
            0 if is_named else self.features,
            0 if is_named else self._counted,
            self.hidden if self.model in PERCEPTRONS else (),
            self.optimizer,
            self.standardize,
            self.seed,
            self.experts if self.optimizer == "pool" else 0,
            self._undeclared() if is_named else "",
            self.table_bits if is_named else 0,
            str(self.predicts),
            calibrate=self.calibrate is not False and not self.predicts.is_numeric,
            no_change=self.model != AUTO and not self.predicts.is_numeric,
            is_narrow=is_named,
            is_quick=self.predicts.kind == "regression",
            compares_codes=is_named and self.model == AUTO,
            bounds_floors=self.predicts.is_numeric,
            follows_jumps=self.predicts.is_numeric,
            scores_as_sent=self.predicts.is_numeric,
            levels=self.calibrate is not False and not self.predicts.is_numeric,
            weighs_families=self.model == AUTO and not (is_named or self.predicts.is_numeric),
            is_fused=self._is_fused,
            families=self._families_of_auto,
        )

    @property
    def _is_fused(self) -> bool:
        """True if compiled steps can take batches of the model, wherever there are any."""
        is_linear = self.model in ("logistic", AUTO) and not self.schema
        is_funnel = self.optimizer in ("pool", "funnel")
        return is_linear and is_funnel and self.predicts.kind == "multiclass"

    @property
    def _families_of_auto(self) -> tuple[str, ...]:
        """The families that a spec names; empty for the usual ones."""
        is_usual = self.model != AUTO or self.families == (LINEAR, *FAMILIES)
        return () if is_usual else self.families

    @property
    def _counted(self) -> int:
        """Classes of dense features: those that are set, 2 for binary, and none of numbers."""
        if self.predicts.is_numeric:
            return 0
        is_set = "classes" in self.model_fields_set
        return 2 if self.predicts.kind == "binary" and not is_set else self.classes

    def _undeclared(self) -> str:
        """Return the schema that every model of rows begins with, as canonical JSON."""
        text: bytes = orjson.dumps(self._of_task().to_json(), option=orjson.OPT_SORT_KEYS)
        return text.decode()

    def _of_task(self) -> "Schema":
        """Return the empty schema of the task."""
        from service.fold.schema.schema import Schema  # pyarrow takes 0.1 s to import

        if self.predicts.kind == "binary":
            return Schema(max_classes=2)
        return Schema(numeric_labels=self.predicts.is_numeric)

    @cached_property
    def declared(self) -> "Schema | None":
        """The declared part of the schema of rows, which may change; None for dense features.

        Raises:
            SettingsError: the file of the schema cannot be read.
        """
        if not self.schema:
            return None
        from service.fold.schema.toml import from_toml

        empty = self._of_task()
        if self.schema == AUTO:
            is_binary = self.predicts.kind == "binary"
            return empty if is_binary else replace(empty, max_classes=self.max_classes)
        try:
            found = from_toml(home(self.schema).read_text())
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise SettingsError(f"{PREFIX}SCHEMA: {self.schema}: {error}") from error
        most = {"multiclass": found.max_classes, "binary": 2}.get(self.predicts.kind, 0)
        if len(found.labels) > most:
            raise SettingsError(
                f"{PREFIX}SCHEMA: {self.schema} declares {len(found.labels)} labels, and "
                f"{PREFIX}TASK={self.task} has {most or 'none'}"
            )
        most = max(most, empty.max_classes if self.predicts.is_numeric else 2)
        return replace(found, max_classes=most, numeric_labels=empty.numeric_labels)

    @property
    def declared_policies(self) -> tuple[str, ...]:
        """The fields of the schema that are declared, other than columns and labels.

        A file declares all of them. ``auto`` keeps what is recorded, except for a limit that is
        set.
        """
        if self.schema in ("", AUTO):
            return ("max_classes",) if "max_classes" in self.model_fields_set else ()
        from service.fold.schema.schema import POLICIES

        return POLICIES

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters, which may change while the model lives."""
        return Hyperparameters(
            self.lr,
            self.momentum,
            self.gain_lr,
            self.scale_lr,
            self.loss_guard,
            self.shadow,
            self.class_weights,
        )


def seconds(duration: str) -> float:
    """Return the seconds of a duration.

    >>> seconds("90s"), seconds("1.5h")
    (90.0, 5400.0)

    Raises:
        ValueError: it is none.
    """
    if (found := DURATION.fullmatch(duration)) is None:
        raise ValueError("give a number and its unit: 500ms, 90s, 30m, 1h or 2d")
    return float(found[1]) * UNITS[found[2]]


def size_of(text: str) -> int:
    """Return the bytes of a size.

    >>> size_of("256MB"), size_of("1024")
    (268435456, 1024)

    Raises:
        ValueError: it is none.
    """
    if (found := SIZE.fullmatch(text)) is None:
        raise ValueError("give a number of bytes, or of kB, MB or GB: 256MB")
    return int(found[1]) << SIZES[found[2] or ""]


def limits_of(archive: str) -> tuple[float, float] | None:
    """Return the seconds and the bytes that an archive keeps at most; None if there is none.

    >>> limits_of("7d,1GB"), limits_of("off")
    ((604800.0, 1073741824), None)

    Raises:
        ValueError: a part of the text is no age and no size, is 0, or is given twice.
    """
    if archive == "off":
        return None
    most = {"age": inf, "size": inf}
    for part in archive.split(","):
        own = part.strip()
        is_age = DURATION.fullmatch(own) is not None
        if not is_age and (not SIZE.fullmatch(own) or own.isdecimal()):
            raise ValueError("give an age, a size, or both with a comma: 7d, 10GB; or off")
        kind, value = ("age", seconds(own)) if is_age else ("size", size_of(own))
        if most[kind] != inf or not value:
            raise ValueError(f"give one {kind} of more than 0")
        most[kind] = value
    return most["age"], most["size"]


def _keys_of(value: SecretStr | None) -> set[str]:
    """Return the keys of a setting."""
    return set(named_keys(value.get_secret_value(), "").values()) if value else set()


def _has_port(parts: SplitResult) -> bool:
    """Return whether the port of an address is valid or missing."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def load_settings(options: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of the environment and of ``options``, which take precedence.

    An empty variable is as one that is not set, but an empty API_KEY is wrong.

    Args:
        options: values by the names of settings, as text or of the setting's type.

    Raises:
        SettingsError: a value is wrong, or a ``FUNNEL_*`` variable is not a setting.
    """
    environment = variables()
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{variable} in the environment is not a setting{hint}")
    given = {
        name: value
        for variable, value in environment.items()
        if (name := variable[len(PREFIX) :].lower()) in Settings.model_fields
        and (value or name in NEVER_EMPTY)
        and not {name, name + FILE, name.removesuffix(FILE)} & set(options or {})
    }
    try:
        return Settings(**given | dict(options or {}))
    except ValidationError as error:
        found = error.errors()[0]
        message = _message(error.errors(), found["loc"][:1])
        if not found["loc"]:
            raise SettingsError(message) from error
        name = str(found["loc"][0]).upper()
        field = Settings.model_fields.get(name.lower())
        secret = field is None or field.annotation is SecretStr or name == "STATE"
        shown = "" if secret else f", got {found['input']!r}"
        raise SettingsError(f"{PREFIX}{name}: {message}{shown}") from error


def _message(errors: Sequence[ErrorDetails], where: tuple[int | str, ...]) -> str:
    """Return what is wrong with one setting, in words; it may be allowed to be one of two types."""
    found = []
    for error in errors:
        if error["loc"][:1] == where:
            limits = {
                name: int(value) if isinstance(value, float) and value.is_integer() else value
                for name, value in error.get("ctx", {}).items()
            }
            message = MESSAGES.get(error["type"], "").format(**limits)
            found.append(message or error["msg"].removeprefix("Value error, "))
            if len(error["loc"]) > 1 and isinstance(error["loc"][1], int):
                return f"{found[0]}, or several with commas"
    return " or ".join(dict.fromkeys(found))
