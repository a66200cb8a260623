"""Where a dataset and an adapter are in their lives. They do no I/O."""

from enum import StrEnum


class DatasetState(StrEnum):
    """Where a dataset is."""

    RECEIVING = "receiving"  #: its bytes are coming in
    VALIDATING = "validating"  #: a worker reads it
    READY = "ready"  #: the report is there; it can be trained on
    REJECTED = "rejected"  #: it cannot be used; `error_detail` says what to do


class AdapterStatus(StrEnum):
    """Where an adapter is; it moves forward only, except that an archived one may be active again."""

    CANDIDATE = "candidate"  #: trained, not yet judged
    APPROVED = "approved"  #: its gate passed, or an admin overrode it
    ACTIVE = "active"  #: answers requests that name no adapter
    ARCHIVED = "archived"  #: was active
    RECALLED = "recalled"  #: must not answer again


class DeploymentKind(StrEnum):
    """Why the answering adapter changed."""

    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    RECALL = "recall"  #: the active one was recalled, and the one before it answers
