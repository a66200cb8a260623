"""Logged conversations as a reviewer reads them."""

from shared.transcripts.reading import read_transcript
from shared.transcripts.records import Judged, Origin, ShownSentence, Transcript, Turn

__all__ = ["Judged", "Origin", "ShownSentence", "Transcript", "Turn", "read_transcript"]
