"""The rows of a source with the shape that they make, where a column may come late. It judges no row.

The first rows decide the shape and what a row needs. What a row may have besides, such as its picture or its
patient, may be in later rows alone, as it often is in JSON Lines: from there on it is read.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from services.worker_train.child import Refused
from services.worker_train.reading import Broken, NumberedRows, Row, Source
from services.worker_train.shapes import FIRST_ROWS, Clash, Conversation, recognise

#: Late columns are listed until there are so many columns: each row of a file may bring others.
_MAX_COLUMNS = 200


class ShapedRows:
    """The rows of one source, to go through once.

    Args:
        source: its rows.
        chosen: part → column, as for `recognise`.

    Raises:
        Refused: there are no rows, or the first ones fit no shape; while going through them, also where a
            late column shows that earlier rows were read wrongly.
    """

    def __init__(self, source: Source, chosen: Mapping[Any, str]) -> None:
        first = list(itertools.islice(source.rows, FIRST_ROWS))
        if not first:
            raise Broken("no-rows", "The file holds no rows. Upload one with at least one.")
        self._chosen, self._pictures = chosen, source.has_pictures
        #: Names of columns, in the order in which they were met.
        self.columns = dict.fromkeys(name for _, row in first for name in row)
        self.shape = recognise(self.columns, chosen, pictures=self._pictures)
        self._rows: NumberedRows = itertools.chain(first, source.rows)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for line, row in self._rows:
            if late := [name for name in row if name not in self.columns]:
                self._widen(line, late)
            yield line, row

    def read(self, row: Row) -> Conversation:
        """The row as a conversation, as far as columns were met. Raises RowProblem."""
        return self.shape.read(row)

    def _widen(self, line: int, late: list[str]) -> None:
        try:
            self.shape = self.shape.with_late(late, self._chosen, pictures=self._pictures)
        except Clash as clash:
            raise Refused(
                "unknown-column",
                f"The column {clash.late!r} first appears on line {line}, and in the rows before it "
                f"{clash.part} is read from {clash.known!r}. Write one of them in every row, or say in the "
                f"options which column {clash.part} is.",
            ) from None
        self.columns.update(dict.fromkeys(late[: max(0, _MAX_COLUMNS - len(self.columns))]))
