"""The parts of Presidio that find identifiers, loaded without the language models that it could run.

Where torch and transformers are installed, Presidio loads them for engines that nobody here starts: seconds
of every start, and hundreds of megabytes in a program that only looks for names. So they are hidden while it
is imported, which it takes for not installed; whoever imports them himself finds them as before.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Within the block these modules cannot be imported. For the start of a program, before its threads."""
    loaded = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None is Python's sign for it
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(loaded)


with _hidden("torch", "transformers"):
    from presidio_analyzer import LocalRecognizer, Pattern, PatternRecognizer, RecognizerResult
    from presidio_analyzer.nlp_engine import NlpArtifacts
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        DateRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        UrlRecognizer,
        UsMbiRecognizer,
    )

__all__ = [
    "CreditCardRecognizer",
    "DateRecognizer",
    "EmailRecognizer",
    "IbanRecognizer",
    "IpRecognizer",
    "LocalRecognizer",
    "NlpArtifacts",
    "Pattern",
    "PatternRecognizer",
    "PhoneRecognizer",
    "RecognizerResult",
    "UrlRecognizer",
    "UsMbiRecognizer",
]
