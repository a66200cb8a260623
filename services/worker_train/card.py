"""Writes an adapter's model card: what it is made of, how, and under which terms. It computes no figure."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from shared.catalogue import CatalogueModel
from shared.training.recipe import Recipe

_ROOT = Path(__file__).resolve().parents[2]
_HAI_DEF = "https://developers.google.com/health-ai-developer-foundations/terms"
_MEDGEMMA_TERMS = f"""\
This adapter is a **modified** derivative of MedGemma: it changes the model's weights when it is loaded.
MedGemma is provided under and subject to the Health AI Developer Foundations Terms of Use found at
{_HAI_DEF}; they, and the use restrictions in them, go with every copy of this adapter.
"""
_GEMMA_TERMS = """\
This adapter is a **modified** derivative of Gemma, which is provided under and subject to the Gemma Terms
of Use found at https://ai.google.dev/gemma/terms; they go with every copy of this adapter.
"""
_DEMO_TERMS = """\
This adapter is a **modified** derivative of MediChat's demo model, a toy without medical knowledge. An
adapter of MedGemma would be under the Health AI Developer Foundations Terms of Use.
"""


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
    data_sha256: str,
    rows: tuple[int, int],
    left_out: tuple[int, int],
    metrics: Mapping[str, Any],
    adapter_sha256: str,
    dtype: str,
) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        rows: how many were learnt and how many held out.
        left_out: how many of either were longer than the recipe's `max_tokens`, and are not among `rows`.
    """
    base = entry.hub_id or f"medichat/{entry.name}"
    front = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text" if entry.reads_images else "text-generation",
        "tags": ["lora", "medichat", "medical"],
    }
    if entry.name.startswith("medgemma"):
        front |= {
            "license": "other",
            "license_name": "health-ai-developer-foundations",
            "license_link": _HAI_DEF,
        }
    lineage = {
        "Adapter": f"`{adapter_sha256}` (SHA-256 of `adapter_model.safetensors`)",
        "Base model": f"{entry.title}, `{base}`",
        "Base revision": f"`{base_revision}`",
        "Data": f"`{data_sha256}` (SHA-256 of the dataset's manifest, or of the file)",
        "Rows": f"{rows[0]:,} learnt, {rows[1]:,} held out"
        + (
            f"; left out as longer than {recipe.max_tokens:,} tokens: {left_out[0]:,} to learn, "
            f"{left_out[1]:,} to hold out"
            if any(left_out)
            else ""
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
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# A LoRA adapter for {entry.title}",
            "",
            "Trained by MediChat. It gives general information, can be wrong, and is no medical device: "
            "evaluate it before anybody relies on it.",
            "",
            "## Lineage",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in lineage.items()),
            "",
            "## Metrics",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name.replace('_', ' ')} | {_figure(value)} |" for name, value in metrics.items()),
            "",
            "Losses are nats per answer token; the held-out rows were never learnt.",
            "",
            "## Recipe",
            "",
            "```yaml",
            yaml.safe_dump(
                recipe.model_dump(mode="json", exclude={"data", "title"}), sort_keys=False
            ).strip(),
            "```",
            "",
            "## Terms",
            "",
            _terms(entry),
        ]
    )


def _terms(entry: CatalogueModel) -> str:
    if entry.name.startswith("medgemma"):
        return _MEDGEMMA_TERMS
    return _DEMO_TERMS if entry.hub_id is None else _GEMMA_TERMS


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _version() -> str:
    try:
        return version("medichat")
    except PackageNotFoundError:
        return "(not installed)"
