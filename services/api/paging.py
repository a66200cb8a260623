"""Opaque cursors for lists ordered by time, newest first. It knows no table."""

import base64
import binascii
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, or_

from services.api.schemas import in_our_time
from shared.errors import InvalidInput


def encode_cursor(moment: datetime, row_id: str) -> str:
    """A cursor that stands for everything older than this row."""
    return base64.urlsafe_b64encode(f"{moment.isoformat()}|{row_id}".encode()).decode()


def older_than(moment_column: Any, id_column: Any, cursor: str) -> ColumnElement[bool]:
    """The rows after a cursor. Raises InvalidInput for one that we did not make."""
    return before(moment_column, id_column, *decode_cursor(cursor))


def before(moment_column: Any, id_column: Any, moment: datetime, row_id: str) -> ColumnElement[bool]:
    """The rows that come after this one, newest first."""
    # the first condition says nothing new, but lets an index begin at the moment
    return and_(
        moment_column <= moment,
        or_(moment_column < moment, and_(moment_column == moment, id_column < row_id)),
    )


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Moment and id of the row that a cursor stands for. Raises InvalidInput for one that we did not make."""
    try:
        text = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
        moment_text, row_id = text.split("|", 1)
        moment = in_our_time(datetime.fromisoformat(moment_text))
    except (ValueError, binascii.Error) as error:
        raise InvalidInput("The cursor is not one that this list gave out; leave it out to start.") from error
    if moment.tzinfo is None or "\x00" in row_id:
        raise InvalidInput("The cursor is not one that this list gave out; leave it out to start.")
    return moment, row_id
