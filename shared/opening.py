"""A process that opens one picture: `python -m shared.opening`. What a file can do to a decoder it does
there.

It reads the file from its standard input and prints one line of JSON, `{"width", "height"}` or `{"refused"}`,
and after the former the PNG. It has no secret in its environment, and little time and memory: pictures come
from whoever asks, and libraries that unpack them can be made to work for hours or to fill gigabytes.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys

from shared.pictures import BrokenPicture, PictureBomb, PreparedPicture, prepare

log = logging.getLogger(__name__)

#: Of the processor: a picture of 16 million pixels takes 2, a mammogram of that size 4.
_CPU_S = 10
#: Until it is given up, whatever else the machine does.
_PATIENCE_S = 25
#: Of addresses; what a mammogram of 16 million pixels takes, with room.
_MEMORY = 3 * 2**30
_READY, _PNG = b"ready", b"\x89PNG\r\n\x1a\n"
_TOO_MUCH = "Too much work is hidden in this picture. Open it and save it anew as PNG or JPEG."


def open_apart(data: bytes, *, cpu_s: int = _CPU_S, memory: int = _MEMORY) -> PreparedPicture:
    """As `shared.pictures.prepare`, in a process of its own. Raises as that, and OSError when none starts."""
    try:
        ended = subprocess.run(
            # -P: nothing is imported from the folder that one happens to be in
            [sys.executable, "-P", "-m", "shared.opening", str(cpu_s), str(memory)],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path),
                "OPENBLAS_NUM_THREADS": "1",  # each would take addresses for itself
                "OMP_NUM_THREADS": "1",
            },
            timeout=_PATIENCE_S,
            process_group=0,  # Ctrl-C is for who started it
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BrokenPicture(_TOO_MUCH) from None
    ready, _, rest = ended.stdout.partition(b"\n")
    if ready != _READY:
        log.error("the process that opens pictures could not begin, and ended with %d", ended.returncode)
        raise OSError("no picture can be opened here")
    if ended.returncode != 0:  # its limits ended it, or a decoder's fault did
        raise BrokenPicture(_TOO_MUCH)
    return _told(rest)


def _told(said: bytes) -> PreparedPicture:
    """What the process says, of which nothing is trusted: it may be in a file's hands."""
    head, _, png = said.partition(b"\n")
    try:
        told = json.loads(head)
        if "refused" in told:
            raise PictureBomb if told["refused"] == "bomb" else BrokenPicture(told["advice"])
        width, height = int(told["width"]), int(told["height"])
    except (ValueError, KeyError, TypeError):
        raise BrokenPicture(_TOO_MUCH) from None
    if not png.startswith(_PNG):
        raise BrokenPicture(_TOO_MUCH)
    return PreparedPicture(png=png, width=width, height=height)


def main() -> int:
    """Open what comes on standard input, within so many seconds and bytes as the command line says."""
    cpu_s, memory = map(int, sys.argv[1:])
    for limit, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),  # the picture would be in it
    ):
        hard = resource.getrlimit(limit)[1]
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (wanted, wanted))
    sys.stdout.buffer.write(_READY + b"\n")
    sys.stdout.buffer.flush()
    told: dict[str, object]
    png = b""
    try:
        prepared = prepare(sys.stdin.buffer.read())
        told = {"width": prepared.width, "height": prepared.height}
        png = prepared.png
    except BrokenPicture as error:
        told = {"refused": "broken", "advice": error.advice}
    except (PictureBomb, MemoryError):
        told = {"refused": "bomb"}
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n" + png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
