"""The rows of a source with the shape that they make, where a column may come late. It judges no row.

The first rows decide the shape and what a row needs. What a row may have besides, such as its picture or its
patient, may be in later rows alone, as it often is in JSON Lines: from there on it is read, and in all rows
from the same column.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from services.worker_train.child import Refused
from services.worker_train.first_rows import held_in
from services.worker_train.reading import Broken, NumberedRows, Row, Source
from services.worker_train.shapes import FIRST_ROWS, Clash, Conversation, recognise, refuse_unmet

#: Late columns are listed until there are so many columns: each row of a file may bring others.
_MAX_COLUMNS = 200


class ShapedRows:
    """The rows of one source, to go through once.

    Args:
        source: its rows.
        chosen: part → column, as for `recognise`.

    Raises:
        Refused: there are no rows, or the first ones fit no shape; while going through them, also where
            another column than the one that is read holds the same, and at the end where a chosen one never
            came.
    """

    def __init__(self, source: Source, chosen: Mapping[Any, str]) -> None:
        first = list(itertools.islice(source.rows, FIRST_ROWS))
        if not first:
            raise Broken("no-rows", "The file holds no rows. Upload one with at least one.")
        self._chosen, self._pictures = chosen, source.has_pictures
        #: Names of columns, in the order in which they were met.
        self.columns = dict.fromkeys(name for _, row in first for name in row)
        held = held_in(row for _, row in first)
        self.shape = recognise(self.columns, chosen, pictures=self._pictures, held=held)
        self._rows: NumberedRows = itertools.chain(first, source.rows)
        #: What was chosen and no row had yet.
        self._unmet = {part: name for part, name in chosen.items() if name not in self.columns}

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for line, row in self._rows:
            if late := [name for name in row if name not in self.columns]:
                self._widen(line, late, row)
            self.shape.refuse_other_names(line, row, self._chosen)
            yield line, row
        refuse_unmet(self._unmet, self.columns)

    def read(self, row: Row) -> Conversation:
        """The row as a conversation, as far as columns were met. Raises RowProblem."""
        return self.shape.read(row)

    def _widen(self, line: int, late: list[str], row: Row) -> None:
        try:
            self.shape = self.shape.with_late(
                late, self._chosen, pictures=self._pictures, held=held_in([row])
            )
        except Clash as clash:
            raise Refused(
                "unknown-column",
                f"The column {clash.other!r} first appears on line {line}, and in the rows before it "
                f"{clash.part} is read from {clash.known!r}. Write one of them in every row, or say in the "
                f"options which column {clash.part} is, as in {self.shape.choice(clash.part, clash.known)}.",
            ) from None
        self._unmet = {part: name for part, name in self._unmet.items() if name not in late}
        self.columns.update(dict.fromkeys(late[: max(0, _MAX_COLUMNS - len(self.columns))]))
