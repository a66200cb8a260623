"""Roles, scopes and account states. They do no I/O and do not know how a person proves who they are."""

from enum import StrEnum


class Role(StrEnum):
    """What a person does here. No role includes another."""

    USER = "user"  #: asks questions
    ADMIN = "admin"  #: manages people and the system
    AUDITOR = "auditor"  #: reads the log


class AccountStatus(StrEnum):
    """Whether an account may log in."""

    ACTIVE = "active"
    PENDING = "pending"  #: an auditor's account that no auditor has approved yet
    DISABLED = "disabled"


class SessionKind(StrEnum):
    """How a log-in is carried."""

    TOKENS = "tokens"  #: a 15-minute access token and a rotating refresh token
    BROWSER = "browser"  #: an opaque token in a cookie, with an idle time-out


class Scope(StrEnum):
    """What an API key may do; never more than its owner's role."""

    ASK = "ask"  #: ask questions, read and change one's own conversations and jobs
    READ = "read"  #: read one's own conversations and jobs, and nothing else
    ADMIN = "admin"  #: what the owner may do as an admin
    AUDIT = "audit"  #: what the owner may do as an auditor
