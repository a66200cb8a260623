"""What a worker answers with: an engine around one model, and how it is named in the rows."""

from dataclasses import dataclass

from services.worker_infer.engines.base import AdapterSource, Engine
from services.worker_infer.pixels import PictureReader
from services.worker_infer.text import ChatText


@dataclass(frozen=True, kw_only=True)
class Model:
    """What answers, and how it is named in the rows."""

    #: In the catalogue; adapters belong to one of these.
    name: str
    model_id: str
    revision: str
    #: How the weights are held: `float32`, `bfloat16` or `nf4`.
    dtype: str
    engine: Engine
    source: AdapterSource
    text: ChatText
    context_tokens: int
    #: None for a model that reads no pictures.
    pictures: PictureReader | None = None
    #: Where it lies; see `shared.memory`.
    memory: str = ""
