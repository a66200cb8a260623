"""`medichat export`: a model with an adapter merged into it, which transformers and vLLM can load, and Ollama
where the base model has a `tokenizer.model`.

Merging is into the unquantised base: an adapter trained over 4-bit weights fits them best, and rounding the
sum to 4 bits again would lose part of what it learnt. The adapter is checked as it is where it serves, before
anything is loaded; afterwards the merged model is compared with base and adapter.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.utils.logging import disable_progress_bar

from services.worker_train import base
from services.worker_train.card import write_merged_card
from services.worker_train.checkpoints import written_aside
from services.worker_train.child import Refused
from services.worker_train.probe import next_logprobs, probe_ids
from shared.settings import load_settings
from shared.training.adapter_files import CARD, check_adapter, sha256_of

#: Largest difference of two logarithms of probabilities that rounding explains, of a token that occurs.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
#: Most that the merged model may be off by, as a share of what the adapter changes: the mean over every token
#: at every place. A merge that changed nothing is off by 1.
_MOST_OFF = {torch.float32: 0.02, torch.bfloat16: 0.4}
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: With it Ollama renders the bytes that templates/gemma3_training.jinja does: the system text opens the first
#: turn of the user. But for spaces around a message: Ollama's templates cannot trim.
OLLAMA_TEMPLATE = """\
{{- $lead := .System }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $lead }}{{ $lead }}

{{ end }}{{ .Content }}<end_of_turn>
{{ $lead = "" }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}{{ if not $last }}<end_of_turn>
{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<start_of_turn>model
{{ end }}
{{- end }}"""
MODELFILE = "Modelfile"
_MODELFILE_TEXT = """\
# ollama create {name} -f Modelfile
FROM .
TEMPLATE \"\"\"{template}\"\"\"
PARAMETER stop <end_of_turn>
PARAMETER temperature 0
SYSTEM \"\"\"{system}\"\"\"
"""


def export(
    adapter: Path,
    folder: Path,
    *,
    model: str = "",
    dtype: str = "bfloat16",
    agree: Callable[[], None] | None = None,
) -> float:
    """Merge and write; returns the largest difference of log-probabilities to base and adapter.

    There is a Modelfile only where Ollama can make something of it.

    `agree` is called when all is written and `folder` is not there yet; what it raises ends the export.

    Raises:
        AdapterRefused: the files are not an intact LoRA in safetensors, made for these weights; or they are
            not those that the folder's name names, where that is a SHA-256.
        Refused: it belongs to other weights, or the merged model says something else.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = load_settings()
    sha256 = adapter.name if _SHA256.fullmatch(adapter.name) else sha256_of(adapter)
    config = check_adapter(adapter, sha256=sha256).config
    _check_free(folder)
    source = base.find_source(model or base.catalogue_name(config), settings)
    if config.revision is None:  # the merged model's origin would be unknown
        raise Refused("wrong-base", "The adapter's configuration does not name the revision of its base.")
    if config.revision != source.revision():
        raise Refused("wrong-base", "The adapter was trained on other weights than the base model's here.")
    number = getattr(torch, dtype)
    device = torch.device("cpu")  # adding two matrices needs no GPU, and the one here may be serving
    plain = base.open_model(source, device=device, dtype=number, nf4=False, packed=False)
    check_adapter(
        adapter, sha256=sha256, base_revision=source.revision(), base_layers=base.linear_layers(plain)
    )
    tokenizer = base.open_tokenizer(source)
    adapted = PeftModel.from_pretrained(plain, adapter, use_safetensors=True).eval()
    texts = probe_ids(tokenizer)
    with adapted.disable_adapter():
        without = said(adapted, texts)
    before = said(adapted, texts)
    merged = adapted.merge_and_unload(safe_merge=True)
    difference = compare(texts, without, before, said(merged, texts), dtype=number)
    with new_folder(folder, agree) as aside:
        merged.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
        if source.entry.reads_images:
            base.open_processor(source).save_pretrained(aside)
        sentencepiece = base.find_sentencepiece(source)
        if sentencepiece is not None:
            shutil.copyfile(sentencepiece, aside / base.SENTENCEPIECE)
            name = f"medichat-{source.entry.name}"
            modelfile = _MODELFILE_TEXT.format(
                name=name, template=OLLAMA_TEMPLATE, system=settings.system_prompt
            )
            (aside / MODELFILE).write_text(modelfile, encoding="utf-8")
        told = adapter / CARD
        card = write_merged_card(
            entry=source.entry,
            base_revision=config.revision,
            adapter_sha256=sha256,
            adapter_card=told.read_text(encoding="utf-8") if told.exists() else "",
            dtype=dtype,
        )
        (aside / CARD).write_text(card, encoding="utf-8")
        for path in aside.iterdir():  # safetensors makes its file for its owner alone
            path.chmod((aside / CARD).stat().st_mode)
    return difference


@torch.no_grad()
def said(model: Any, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """What a model says of each text: log-probabilities, see `next_logprobs`."""
    return [next_logprobs(model, ids) for ids in texts]


def compare(
    texts: Sequence[Sequence[int]],
    base: Sequence[torch.Tensor],
    adapted: Sequence[torch.Tensor],
    merged: Sequence[torch.Tensor],
    *,
    dtype: torch.dtype,
) -> float:
    """The largest difference of a token that occurs, in nats, between base with adapter and merged model.

    Raises Refused when they do not say the same, or when what the adapter changed is not in the merged model.
    """
    apart = torch.cat([(one - other).abs() for one, other in zip(merged, adapted, strict=True)])
    changed = torch.cat([(one - other).abs() for one, other in zip(adapted, base, strict=True)])
    occurring = torch.cat([torch.tensor(ids)[1:] for ids in texts])
    difference = float(apart.gather(-1, occurring[:, None]).max())
    off = float(apart.mean() / changed.mean())
    if not off <= _MOST_OFF[dtype]:
        finer = "; export it with --dtype float32, which rounds less" if dtype != torch.float32 else ""
        raise Refused(
            "merge-differs",
            f"The merged model is off by {off:.0%} of what the adapter changes, and the limit is "
            f"{_MOST_OFF[dtype]:.0%}: the adapter changes too little, or the merge lost it{finer}.",
        )
    if not difference <= _TOLERANCE[dtype]:
        raise Refused("merge-differs", f"The merged model differs from base and adapter by {difference:.3g}.")
    return difference


@contextmanager
def new_folder(folder: Path, agree: Callable[[], None] | None) -> Iterator[Path]:
    """A folder to write to that becomes `folder` when the block ends, if that is not there and `agree` raises
    nothing. Raises Refused or DiskFull, and OSError when something comes to lie there just then.
    """
    with written_aside(folder.absolute().parent, folder.name, alone=False) as aside:
        yield aside
        _check_free(folder)
        if agree is not None:
            agree()


def _check_free(folder: Path) -> None:
    if os.path.lexists(folder):
        raise Refused("exists", f"{folder} exists already; name a folder that does not.")
