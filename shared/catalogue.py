"""The models that MediChat knows by name. It loads none of them and imports nothing that could."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from shared.errors import InvalidInput
from shared.model_shapes import DEMO, GEMMA_1B, GEMMA_4B, GEMMA_27B, GEMMA_27B_TEXT, ModelShape


class ModelClass(StrEnum):
    """The transformers class that a checkpoint is read with."""

    TEXT_AND_IMAGES = "Gemma3ForConditionalGeneration"
    TEXT = "Gemma3ForCausalLM"


class DType(StrEnum):
    """A number format for weights. There is no float16: Gemma 3's activations overflow in it."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantisation(StrEnum):
    """How weights are held in memory."""

    NONE = "none"
    #: 4-bit NormalFloat with double quantisation (Dettmers et al. 2023, QLoRA).
    NF4 = "nf4"


@dataclass(frozen=True, kw_only=True)
class CatalogueModel:
    """One entry; what an operator chooses by `MEDICHAT_MODEL`."""

    name: str
    #: What a person sees.
    title: str
    #: Repository on the Hugging Face hub; None for a model that comes with MediChat.
    hub_id: str | None
    #: Commit of that repository: weights never change under a name.
    revision: str | None
    model_class: ModelClass
    #: Where the weights of a model without a hub repository lie.
    folder: Path | None = None
    #: Number format on a device that supports it; elsewhere float32.
    dtype: DType = DType.BFLOAT16
    #: Unless the operator chooses.
    quantisation: Quantisation = Quantisation.NONE
    #: Longest prompt plus answer that MediChat serves, in tokens.
    context_tokens: int = 8192
    #: Whether the model can be asked if a sentence that the guard doubts may be shown.
    judges: bool = False
    #: Number of weights, to judge before loading whether they fit.
    parameters: int
    #: Its sizes, to judge the rest.
    shape: ModelShape

    @property
    def reads_images(self) -> bool:
        """Whether a question may come with a picture."""
        return self.model_class is ModelClass.TEXT_AND_IMAGES

    def weight_bytes(self, number_bytes: int, quantisation: Quantisation) -> int:
        """Memory that the weights take where those that are not quantised take `number_bytes` each."""
        nf4 = quantisation is Quantisation.NF4
        return self.shape.weight_bytes(self.parameters, number_bytes, nf4=nf4)


_ENTRIES = (
    CatalogueModel(
        name="demo",
        title="MediChat demo (a toy)",
        hub_id=None,
        revision=None,
        folder=Path(__file__).resolve().parent.parent / "models" / "demo" / "weights",
        model_class=ModelClass.TEXT_AND_IMAGES,
        dtype=DType.FLOAT32,
        context_tokens=2048,
        parameters=6_313_728,
        shape=DEMO,
    ),
    CatalogueModel(
        name="gemma-1b",
        title="Gemma 3 1B, not medical",
        hub_id="google/gemma-3-1b-it",
        revision="dcc83ea841ab6100d6b47a070329e1ba4cf78752",
        model_class=ModelClass.TEXT,
        parameters=999_885_952,
        shape=GEMMA_1B,
    ),
    CatalogueModel(
        name="medgemma-4b",
        title="MedGemma 4B",
        hub_id="google/medgemma-4b-it",
        revision="290cda5eeccbee130f987c4ad74a59ae6f196408",
        model_class=ModelClass.TEXT_AND_IMAGES,
        judges=True,
        parameters=4_300_079_472,
        shape=GEMMA_4B,
    ),
    CatalogueModel(
        name="medgemma-1.5-4b",
        title="MedGemma 1.5 4B",
        hub_id="google/medgemma-1.5-4b-it",
        revision="91850547d9f0b2fdd21aa7c5f4f3d1a8a52c243b",
        model_class=ModelClass.TEXT_AND_IMAGES,
        judges=True,
        parameters=4_300_079_472,
        shape=GEMMA_4B,
    ),
    CatalogueModel(
        name="medgemma-27b",
        title="MedGemma 27B",
        hub_id="google/medgemma-27b-it",
        revision="2d3e00ea38b50018bf5dd3aa1009457cd2d5a48f",
        model_class=ModelClass.TEXT_AND_IMAGES,
        quantisation=Quantisation.NF4,
        judges=True,
        parameters=27_432_406_640,
        shape=GEMMA_27B,
    ),
    CatalogueModel(
        name="medgemma-27b-text",
        title="MedGemma 27B, text only",
        hub_id="google/medgemma-27b-text-it",
        revision="5b667cf2ddcf064085bc90952edb35a0edbfb79c",
        model_class=ModelClass.TEXT,
        quantisation=Quantisation.NF4,
        judges=True,
        parameters=27_009_346_304,
        shape=GEMMA_27B_TEXT,
    ),
)

#: Every model by its name.
CATALOGUE = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def find_model(name: str) -> CatalogueModel:
    """The entry of that name. Raises InvalidInput, listing the names, when there is none."""
    try:
        return CATALOGUE[name]
    except KeyError:
        known = ", ".join(CATALOGUE)
        raise InvalidInput(
            f"There is no model of that name; set MEDICHAT_MODEL to one of: {known}."
        ) from None


def choose_quantisation(setting: str, entry: CatalogueModel) -> Quantisation:
    """How the entry's weights are held where `MEDICHAT_QUANTISE` is so set; `auto`: as the entry says."""
    return entry.quantisation if setting == "auto" else Quantisation(setting)


def weights_folder(entry: CatalogueModel, chosen: Path | None) -> Path | None:
    """Where the entry's weights lie on this machine, in the chosen folder or its own; None: the hub has them.

    Raises InvalidInput when there are none.
    """
    folder = chosen or entry.folder
    if folder is not None and not list(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"There are no safetensors files for the model {entry.name} in {folder}; see MEDICHAT_MODEL_PATH."
        )
    return folder
