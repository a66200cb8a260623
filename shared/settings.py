"""Reads the configuration from the environment and from secret files. It starts nothing.

Every setting is an environment variable `MEDICHAT_<NAME>`; every secret may instead be a file
`medichat_<name>` in `MEDICHAT_SECRETS_DIR` (the shape that Docker and Kubernetes mount).
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

SYSTEM_PROMPT = (
    "You are a helpful medical assistant. You provide information, not diagnosis. "
    "Always advise consulting a doctor."
)


def _reached_at(host: str) -> str:
    """Where this machine reaches what listens on this address of it, as a URL writes it."""
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}  # noqa: S104
    host = here.get(host, host)
    return f"[{host}]" if ":" in host else host


class Settings(BaseSettings):
    """The configuration of every process; see the README's table for what an operator usually sets."""

    model_config = SettingsConfigDict(env_prefix="MEDICHAT_", extra="ignore")

    #: Folder that holds everything a local installation keeps.
    state_dir: Path = Path(".medichat")
    #: SQLAlchemy URL of the application role; SQLite in `state_dir` when unset.
    database_url: str = ""
    #: URL of the role that owns the tables, used by migrations only; `database_url` when unset.
    database_owner_url: str = ""
    #: Password put into `database_url` (a secret file keeps it out of the environment).
    database_password: SecretStr | None = None
    database_owner_password: SecretStr | None = None
    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_password: SecretStr | None = None
    #: Wraps every data key: 32 random bytes in base64, or the keyring that `medichat keys rotate` writes.
    #: Losing it loses every conversation.
    master_key: SecretStr | None = None
    #: A command line that prints the master key, for a key service: run without a shell, and never logged.
    master_key_command: SecretStr | None = None
    #: Folder of the secret files; `secrets` in `state_dir` when unset.
    secrets_dir: Path | None = None
    #: Signs access tokens.
    token_key: SecretStr | None = None
    #: 32 random bytes, base64: signs checkpoints of the log. Another one cannot check what this one signed.
    audit_key: SecretStr | None = None

    #: Where datasets, checkpoints and adapters are kept: a folder or an fsspec URL such as `s3://bucket/medichat`;
    #: a folder in `state_dir` when unset. Workers on several hosts need one that all of them reach.
    storage_url: str = ""
    #: Where signed checkpoints of the log, and the lists of what was erased and what is held, are kept
    #: outside of the database: a folder (better on another disk) or an fsspec URL; a folder in `state_dir`
    #: when unset.
    checkpoint_url: str = ""
    #: Largest dataset that is taken, in bytes.
    max_dataset_bytes: int = Field(1_000_000_000, ge=1)
    #: Folder of the gateway's machine from which admins may import datasets; none when unset.
    dataset_import_dir: Path | None = None
    #: Adapters that one worker holds ready beside the base model; the one idle for longest makes room.
    max_adapters_loaded: int = Field(3, ge=1)
    #: Held-out rows, and multiple-choice questions, that an evaluation scores at the most.
    evaluation_rows: int = Field(256, ge=1, le=5000)
    #: Held-out rows, and training rows, whose questions it has answered at the most, and an answer's length.
    evaluation_answers: int = Field(64, ge=1, le=5000)
    evaluation_answer_tokens: int = Field(128, ge=1)
    #: What an evaluation may take, in seconds; short of time it asks fewer questions and says so.
    evaluation_seconds: float = Field(1800, gt=0)
    #: JSONL of multiple-choice questions in PubMedQA's form (question, context, answer); MediChat's own when
    #: unset, and with `none` none are asked.
    evaluation_choices: str = ""

    #: Address that the gateway listens on.
    api_host: str = "127.0.0.1"
    api_port: int = Field(8000, ge=1, le=65535)
    #: Proxies in front of the gateway, as addresses or networks, with commas: only their word on whom
    #: they speak for (X-Forwarded-For) is taken.
    trusted_proxies: str = "127.0.0.1"
    #: Address that the dashboard listens on.
    ui_host: str = "127.0.0.1"
    ui_port: int = Field(8501, ge=1, le=65535)
    #: Where the dashboard reaches the gateway; this machine when unset.
    api_url: str = ""
    #: Where a browser reaches the gateway (its log-in page) and the dashboard; this machine when unset.
    public_api_url: str = ""
    public_ui_url: str = ""
    #: Mark the log-in cookie `Secure`; switch on behind TLS.
    secure_cookies: bool = False

    #: Catalogue name (see shared/catalogue.py).
    model: str = "demo"
    #: Read the model's weights from this folder instead of the hub.
    model_path: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    #: With `auto` the catalogue says it of each model.
    quantise: Literal["auto", "none", "nf4"] = "auto"
    system_prompt: str = SYSTEM_PROMPT
    #: Whose help lines and emergency numbers are named (see shared/guard/resources.yaml).
    locale: Literal["intl", "us", "uk", "gb", "ie", "eu", "ca", "au"] = "intl"
    #: Longest answer in tokens that a request may ask for, and the length when it asks for none. Question and
    #: answer share the model's context: of one who asks for no length the answer takes half of it at most.
    max_new_tokens: int = Field(512, ge=1)
    #: Requests that one worker generates at the same time.
    worker_concurrency: int = Field(32, ge=1)

    #: Longest wait of `POST /predict` before it answers 202, in seconds.
    wait_limit_s: float = Field(120, ge=0)
    #: A job not finished this many seconds after it was submitted fails.
    job_deadline_s: float = Field(600, gt=0)
    max_queued_jobs_per_user: int = Field(20, ge=1)
    max_body_bytes: int = Field(262_144, ge=1024)
    max_query_chars: int = Field(20_000, ge=1)
    #: Pictures that one question may come with; each takes 256 tokens of the model's context. 0 takes none.
    max_images: int = Field(4, ge=0, le=16)
    requests_per_minute: int = Field(600, ge=1)
    logins_per_minute: int = Field(20, ge=1)
    session_idle_minutes: float = Field(60, gt=0)
    session_max_hours: float = Field(12, gt=0)
    #: Exporting, erasing and revealing ask for the password again unless it was typed within this time.
    password_minutes: float = Field(10, gt=0)

    #: Share of all answers, in %, that auditors are asked to review by chance.
    review_sample_percent: float = Field(2, ge=0, le=100)
    #: Share of what is reviewed, in %, that two auditors review, neither knowing what the other says.
    review_double_percent: float = Field(10, ge=0, le=100)
    #: Periods of retention in days, after which maintenance erases for good, unless a legal hold keeps it; 0
    #: keeps for ever. Conversations since their last message, hidden or not.
    retention_conversations_days: int = Field(0, ge=0)
    #: Datasets since an admin removed them from the list.
    retention_datasets_days: int = Field(0, ge=0)
    #: Log-ins since they ended, with their tokens; each person's newest stays, and says when they were here.
    retention_sessions_days: int = Field(0, ge=0)

    #: A running job belongs to its worker for this long after each heartbeat, in seconds.
    lease_s: float = Field(60, gt=0)
    heartbeat_s: float = Field(10, gt=0)
    reconcile_s: float = Field(5, gt=0)
    #: Events wait at most about this long before they are sealed into the log, in seconds.
    seal_s: float = Field(0.25, gt=0)
    #: A log that grew gets a signed checkpoint this often, in seconds.
    checkpoint_s: float = Field(60, gt=0)
    #: Base of the exponential back-off between attempts, in seconds.
    retry_base_s: float = Field(2, ge=0)
    max_attempts: int = Field(3, ge=1)

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is no number
            usable = False
        if not usable:
            raise ValueError("write redis://HOST:PORT/NUMBER, or rediss:// with TLS")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for each in filter(None, value.replace(" ", "").split(",")):
            ip_network(each, strict=False)
        return value

    @model_validator(mode="after")
    def _fill_defaults(self) -> "Settings":
        if not self.database_url:
            self.database_url = f"sqlite:///{(self.state_dir / 'medichat.db').absolute()}"
        self.secrets_dir = self.secrets_dir or self.state_dir / "secrets"
        self.storage_url = self.storage_url or str((self.state_dir / "storage").absolute())
        self.checkpoint_url = self.checkpoint_url or str((self.state_dir / "checkpoints").absolute())
        self.database_owner_url = self.database_owner_url or self.database_url
        self.api_url = self.api_url or f"http://{_reached_at(self.api_host)}:{self.api_port}"
        self.public_api_url = self.public_api_url or self.api_url
        self.public_ui_url = self.public_ui_url or self.ui_url
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError("MEDICHAT_LEASE_S must be at least twice MEDICHAT_HEARTBEAT_S")
        return self

    @property
    def ui_url(self) -> str:
        """Where this machine reaches the dashboard."""
        return f"http://{_reached_at(self.ui_host)}:{self.ui_port}"

    def secret(self, name: Literal["master_key", "token_key", "audit_key"]) -> str:
        """The secret's value. Raises ValueError, naming the way out, when it was never made."""
        value: SecretStr | None = getattr(self, name)
        if value is None or not value.get_secret_value():
            raise ValueError(
                f"no {name}: run `medichat init`, or set MEDICHAT_{name.upper()}, or mount the file "
                f"medichat_{name} in MEDICHAT_SECRETS_DIR"
            )
        return value.get_secret_value()


def describe_wrong(error: ValueError) -> str:
    """One line about a setting that cannot be used, by its name; any other error in its own words."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = "_".join(str(part) for part in first["loc"]).upper()
    rule = first["msg"].removeprefix("Value error, ")
    return f"the setting MEDICHAT_{field} is wrong: {rule}" if field else rule


def load_settings() -> Settings:
    """Read the environment and the secret files now (no caching)."""
    state_dir = Path(os.environ.get("MEDICHAT_STATE_DIR", ".medichat"))
    secrets_dir = Path(os.environ.get("MEDICHAT_SECRETS_DIR", state_dir / "secrets"))
    return Settings(_secrets_dir=secrets_dir if secrets_dir.is_dir() else None)


class _GivenSettings(Settings):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings_from(environment: Mapping[str, str]) -> Settings:
    """The settings of a process that will run in this environment, which is not this one's."""
    names = {name: f"MEDICHAT_{name.upper()}" for name in Settings.model_fields}
    given = {name: environment[variable] for name, variable in names.items() if variable in environment}
    return _GivenSettings.model_validate(given)


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once at first use."""
    return load_settings()
