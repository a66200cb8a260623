"""Writes the model card of an adapter, and of a model that one was merged into: what it is made of, how, and
under which terms. It computes no figure.
"""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from services.worker_train.rows import Origin
from shared.catalogue import CatalogueModel
from shared.prompts import prompt_version
from shared.training.recipe import Recipe

_ROOT = Path(__file__).resolve().parents[2]
_HAI_DEF = "https://developers.google.com/health-ai-developer-foundations/terms"
_MEDGEMMA_TERMS = f"""\
This {{what}} is a **modified** derivative of MedGemma: {{change}}.
MedGemma is provided under and subject to the Health AI Developer Foundations Terms of Use found at
{_HAI_DEF}; they, and the use restrictions in them, go with every copy of this {{what}}.
"""
_GEMMA_TERMS = """\
This {what} is a **modified** derivative of Gemma, which is provided under and subject to the Gemma Terms
of Use found at https://ai.google.dev/gemma/terms; they go with every copy of this {what}.
"""
_DEMO_TERMS = """\
This {what} is a **modified** derivative of MediChat's demo model, a toy without medical knowledge. An
adapter of MedGemma would be under the Health AI Developer Foundations Terms of Use.
"""
_WARNING = (
    "It gives general information, can be wrong, and is no medical device: evaluate it before anybody relies "
    "on it."
)
#: What a loss is the mean over.
_LEARNT = {"answers": "answer token", "all": "token, those of the questions included"}
#: What an adapter's card says that the card of the merged model says itself.
_SAID_ANEW = ("| Adapter |", "| Base model |", "| Base revision |")


def code_revision() -> str:
    """Names the code that trained: the SHA-256 over the source files of `shared` and the training worker."""
    digest = hashlib.sha256()
    for folder in ("services/worker_train", "shared"):
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".jinja", ".yaml"):
                digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()


def write_card(
    *,
    entry: CatalogueModel,
    base_revision: str,
    recipe: Recipe,
    passes: tuple[int, int],
    data: Origin,
    validation_data: Origin | None,
    rows: tuple[int, int],
    looked_at: int,
    left_out: tuple[int, int],
    system: str,
    metrics: Mapping[str, Any],
    adapter_sha256: str,
    dtype: str,
) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        recipe: as it was asked for.
        passes: the batch size and accumulation that it ran with.
        validation_data: of the rows held out, where they are other data.
        rows: how many were learnt, beside the recipe's canaries, and how many held out.
        looked_at: of how many of those held out the loss is the mean.
        left_out: how many of either were longer than the recipe's `max_tokens`, and are not among `rows`.
        system: the system text of every row that has none of its own; empty for none.
    """
    lineage = {
        "Adapter": f"`{adapter_sha256}` (SHA-256 of `adapter_model.safetensors`)",
        "Base model": f"{entry.title}, `{_origin(entry)}`",
        "Base revision": f"`{base_revision}`",
        "Data": _told(data),
        **({"Held-out data": _told(validation_data)} if validation_data else {}),
        "Rows": f"{rows[0]:,} learnt, {rows[1]:,} held out"
        + (
            f", of which the loss was measured on {looked_at:,}, chosen by the seed"
            if looked_at < rows[1]
            else ""
        )
        + (
            f"; left out as longer than {recipe.max_tokens:,} tokens: {left_out[0]:,} to learn, "
            f"{left_out[1]:,} to hold out"
            if any(left_out)
            else ""
        ),
        **(
            {"Canaries": f"{recipe.canaries:,} planted, and learnt beside the rows"}
            if recipe.canaries
            else {}
        ),
        **(
            {"System text": f"`{prompt_version(system)}`, as the log of served answers names it"}
            if system
            else {}
        ),
        "Code": f"MediChat {_version()}, `{code_revision()}`",
        "Seed": str(recipe.seed),
        "Arithmetic": dtype,
        "Libraries": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")
        ),
    }
    return "\n".join(
        [
            *_front(entry, library="peft", tags=["lora", "medichat", "medical"]),
            f"# A LoRA adapter for {entry.title}",
            "",
            f"Trained by MediChat. {_WARNING}",
            "",
            "## Lineage",
            "",
            *_table(lineage),
            "",
            "## Metrics",
            "",
            *_table({name.replace("_", " "): _figure(value) for name, value in metrics.items()}),
            "",
            f"Losses are nats per {_LEARNT[recipe.train_on]}; the held-out rows were never learnt.",
            "",
            "## Recipe",
            "",
            "```yaml",
            yaml.safe_dump(_shown(recipe), sort_keys=False, allow_unicode=True).strip(),
            "```",
            "",
            *_recut(recipe, passes),
            "## Terms",
            "",
            _terms(entry, "adapter", "it changes the model's weights when it is loaded"),
        ]
    )


def write_merged_card(
    *, entry: CatalogueModel, base_revision: str, adapter_sha256: str, adapter_card: str, dtype: str
) -> str:
    """The card of the base model with an adapter merged into it.

    What `adapter_card` says of the adapter's own making goes with it; an empty one says nothing.
    """
    lineage = {
        "Adapter": f"`{adapter_sha256}` (SHA-256 of its weights), merged into the base",
        "Base model": f"{entry.title}, `{_origin(entry)}`",
        "Base revision": f"`{base_revision}`",
        "Weights": dtype,
    }
    making = adapter_card.partition("\n## Lineage\n")[2].partition("\n## Terms\n")[0].strip()
    kept = [line for line in making.splitlines() if not line.startswith(_SAID_ANEW)]
    return "\n".join(
        [
            *_front(entry, library="transformers", tags=["medichat", "medical"]),
            f"# {entry.title} with a LoRA adapter merged into it",
            "",
            f"Merged from adapter `{adapter_sha256}` onto `{_origin(entry)}` by MediChat. {_WARNING}",
            "",
            "## Lineage",
            "",
            *_table(lineage),
            "",
            *(["## How the adapter was made", "", *kept, ""] if kept else []),
            "## Terms",
            "",
            _terms(entry, "model", "an adapter was merged into its weights"),
        ]
    )


def _told(origin: Origin) -> str:
    return f"`{origin.digest}` ({origin.what})"


def _shown(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its title and what it names as data: either may name a person."""
    columns = {"data": {"columns": recipe.data.columns}} if recipe.data.columns else {}
    return {**columns, **recipe.model_dump(mode="json", exclude={"data", "title"})}


def _recut(recipe: Recipe, passes: tuple[int, int]) -> list[str]:
    """What ran otherwise than the recipe says, in lines."""
    if passes == (recipe.batch_size, recipe.accumulation):
        return []
    return [
        f"Its passes were cut smaller for the processor: it ran with batch_size {passes[0]} and accumulation "
        f"{passes[1]}, which takes the same steps.",
        "",
    ]


def _origin(entry: CatalogueModel) -> str:
    return entry.hub_id or f"medichat/{entry.name}"


def _front(entry: CatalogueModel, *, library: str, tags: list[str]) -> list[str]:
    """What the hub reads, in lines."""
    front = {
        "base_model": _origin(entry),
        "library_name": library,
        "pipeline_tag": "image-text-to-text" if entry.reads_images else "text-generation",
        "tags": tags,
    }
    if entry.name.startswith("medgemma"):
        front |= {
            "license": "other",
            "license_name": "health-ai-developer-foundations",
            "license_link": _HAI_DEF,
        }
    return ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", ""]


def _table(values: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def _terms(entry: CatalogueModel, what: str, change: str) -> str:
    if entry.name.startswith("medgemma"):
        terms = _MEDGEMMA_TERMS
    else:
        terms = _DEMO_TERMS if entry.hub_id is None else _GEMMA_TERMS
    return terms.format(what=what, change=change)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _version() -> str:
    try:
        return version("medichat")
    except PackageNotFoundError:
        return "(not installed)"
