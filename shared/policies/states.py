"""How the policy that counts can come to count. It does no I/O."""

from enum import StrEnum


class ActivationKind(StrEnum):
    """Why a row of `guard_activations` was written."""

    ACTIVATE = "activate"  #: a version answers from now on
    SHADOW = "shadow"  #: another version judges beside it, or none any more
    ROLL_BACK = "roll_back"  #: the version before answers again
