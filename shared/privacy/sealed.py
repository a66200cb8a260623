"""Encrypts and decrypts streams of any length in flat memory. It does not know what is in them.

Layout: the magic bytes, then frames of `length (4 bytes, big-endian) ‖ nonce ‖ ciphertext ‖ tag`, each of at
most `FRAME_BYTES` of plaintext under AES-256-GCM. A frame is bound to its place, its number and whether it
is the last, after the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): cut, reordered or
moved frames do not decrypt.
"""

import io
from typing import IO

from shared.privacy.envelope import CannotDecrypt, DataKey

MAGIC = b"MCSEAL1\n"
FRAME_BYTES = 1 << 20
_OVERHEAD = 28  # nonce and tag
_LENGTH_BYTES = 4


class SealedWriter(io.RawIOBase):
    """Takes plaintext and writes sealed bytes to `sink`, which stays open; `close()` ends the stream."""

    def __init__(self, sink: IO[bytes], key: DataKey, *, place: str) -> None:
        super().__init__()
        self._sink, self._key, self._place = sink, key, place
        self._waiting = bytearray()
        self._number = 0
        sink.write(MAGIC)

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Take all of `data`."""
        self._waiting += data
        while len(self._waiting) > FRAME_BYTES:
            self._seal(bytes(self._waiting[:FRAME_BYTES]), last=False)
            del self._waiting[:FRAME_BYTES]
        return len(data)

    def close(self) -> None:
        """Write the last frame; a stream without it is refused by the reader."""
        if not self.closed:
            self._seal(bytes(self._waiting), last=True)
        super().close()

    def __del__(self) -> None:
        """A stream that was left behind gets no end: `io` would close it here, and make it look whole."""

    def _seal(self, plaintext: bytes, *, last: bool) -> None:
        sealed = self._key.encrypt_bytes(plaintext, place=_frame_place(self._place, self._number, last))
        self._sink.write(len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed)
        self._number += 1


class SealedReader(io.RawIOBase):
    """Reads what a `SealedWriter` wrote; wrap it in `io.BufferedReader` to read lines.

    Reading raises CannotDecrypt for a wrong key or place, and for altered, missing or added bytes.
    """

    def __init__(self, source: IO[bytes], key: DataKey, *, place: str) -> None:
        super().__init__()
        self._source, self._key, self._place = source, key, place
        self._ready = memoryview(b"")
        self._number = 0
        self._ended = False
        if source.read(len(MAGIC)) != MAGIC:
            raise CannotDecrypt("this is not a sealed file")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill `buffer` as far as one frame goes; 0 at the end."""
        while not self._ready and not self._ended:
            self._ready = memoryview(self._open())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        """Close the source too."""
        if not self.closed:
            self._source.close()
        super().close()

    def _open(self) -> bytes:
        length = int.from_bytes(self._exactly(_LENGTH_BYTES), "big")
        if not _OVERHEAD <= length <= FRAME_BYTES + _OVERHEAD:
            raise CannotDecrypt("the sealed file is damaged")
        frame = self._exactly(length)
        number, self._number = self._number, self._number + 1
        try:
            return self._key.decrypt_bytes(frame, place=_frame_place(self._place, number, False))
        except CannotDecrypt:
            plaintext = self._key.decrypt_bytes(frame, place=_frame_place(self._place, number, True))
        self._ended = True
        if self._source.read(1):
            raise CannotDecrypt("the sealed file has bytes after its end")
        return plaintext

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._source.read(count - len(data))
            if not more:
                raise CannotDecrypt("the sealed file is cut short")
            data += more
        return data


def _frame_place(place: str, number: int, last: bool) -> str:
    return f"{place}:{number}:{'last' if last else 'more'}"


class SealedFile(io.RawIOBase):
    """Reads a sealed file from any place in it: formats that are read from their end need that.

    Frames have one size, so a place in the plaintext says which frame to read. The last frame is opened
    first, so a cut file is refused at once. Raises CannotDecrypt as `SealedReader` does.
    """

    def __init__(self, source: IO[bytes], key: DataKey, *, place: str) -> None:
        super().__init__()
        self._source, self._key, self._place = source, key, place
        self._position = 0
        if source.read(len(MAGIC)) != MAGIC:
            raise CannotDecrypt("this is not a sealed file")
        self._sealed_bytes = source.seek(0, io.SEEK_END)
        frame_bytes = _LENGTH_BYTES + FRAME_BYTES + _OVERHEAD
        self._last = (self._sealed_bytes - len(MAGIC) - 1) // frame_bytes
        if self._last < 0:
            raise CannotDecrypt("the sealed file is cut short")
        self._frame_bytes = frame_bytes
        self._number, self._frame = self._last, self._open(self._last)
        self._size = self._last * FRAME_BYTES + len(self._frame)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill `buffer` as far as one frame goes; 0 at the end."""
        number, start = divmod(self._position, FRAME_BYTES)
        if self._position >= self._size:
            return 0
        if number != self._number:
            self._number, self._frame = number, self._open(number)
        piece = self._frame[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Close the source too."""
        if not self.closed:
            self._source.close()
        super().close()

    def _open(self, number: int) -> bytes:
        self._source.seek(len(MAGIC) + number * self._frame_bytes)
        sealed = self._source.read(self._frame_bytes)
        length = int.from_bytes(sealed[:_LENGTH_BYTES], "big")
        last = number == self._last
        if len(sealed) != _LENGTH_BYTES + length or (not last and len(sealed) != self._frame_bytes):
            raise CannotDecrypt("the sealed file is damaged")
        place = _frame_place(self._place, number, last)
        return self._key.decrypt_bytes(sealed[_LENGTH_BYTES:], place=place)
