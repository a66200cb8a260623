"""The story of a training, top to bottom: read the rows that the recipe names, turn them into tokens, judge
whether it fits, open the base model, train, and write the adapter with its card. Each part has a module of
its own; this one puts them in order, and tells how it ended. It knows no command line.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from services.worker_train import base, batches, callbacks, child, output, processes, troubles
from services.worker_train.begun import begun_with, changed_since
from services.worker_train.checkpoints import base_of, newest_checkpoint, step_of
from services.worker_train.child import KNOWN_STEP, Exit, Refused
from services.worker_train.estimate import DoesNotFit, Shapes, estimate
from services.worker_train.material import Material, prepare
from services.worker_train.memory import is_out_of_memory
from services.worker_train.processes import Ending, tell
from services.worker_train.room import MustWait, Room
from services.worker_train.speed import operations_per_second
from services.worker_train.trainer import AdapterTrainer, arguments
from shared.training.recipe import Recipe


def run_and_report(recipe: Recipe, folder: Path) -> Exit:
    """Train; whatever ends it is told in an event and as a status."""
    stop = callbacks.StopRequest()
    stop.install()
    ending = run_to_its_end(recipe, folder, stop)
    return ending.status if processes.leave_ending(ending) else tell(ending)


def run_to_its_end(recipe: Recipe, folder: Path, stop: callbacks.StopRequest) -> Ending:
    """Train; raises what nobody foresaw."""
    try:
        status = run(recipe, folder, stop)
    except Refused as error:
        return Ending(error.status, error.reason, error.detail)
    except MustWait as error:
        return Ending(Exit.WAIT, "waiting-for-memory", error.detail)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        detail = "The memory was full; a smaller batch with more accumulation gives the same training."
        return Ending(Exit.OUT_OF_MEMORY, "out-of-memory", detail)
    except OSError as error:
        trouble = troubles.of_files(error, again="start the run again; its earlier checkpoints are whole")
        if trouble is None:
            raise
        return Ending(trouble.status, trouble.reason, trouble.detail)
    if status is Exit.DRAINED:
        return Ending(status, "drained", "Stopped on request; a checkpoint is saved.")
    return Ending(status)


def say(event: str, **fields: Any) -> None:
    """Tell the supervisor; of several processes only the first does."""
    if processes.is_first():
        child.emit(event, **fields)


def run(recipe: Recipe, folder: Path, stop: callbacks.StopRequest) -> Exit:
    """Train as the recipe says in the run's folder. Raises Refused when it cannot be done, MustWait when
    not now.
    """
    material = prepare(recipe)
    recipe, device = material.recipe, base.choose_device()
    dtype = base.choose_dtype(recipe, device)
    judge(
        material,
        Shapes.of(base.read_config(material.source), material.source.entry.parameters),
        device,
        dtype,
    )
    model = base.open_model(
        material.source, device=device, dtype=dtype, nf4=recipe.quantisation == "nf4", packed=material.packed
    )
    revision = material.source.revision()
    checkpoints = folder / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    if newest is not None:
        check_begun(newest, material, revision)
    known = os.environ.get(KNOWN_STEP)
    watch = callbacks.Watch(
        say,
        stop,
        patience=recipe.early_stopping_patience,
        known_step=None if known is None else int(known),
    )
    trainer = make_trainer(
        material, model, checkpoints, device=device, dtype=dtype, watch=watch, revision=revision
    )
    say(
        "plan",
        total_steps=trainer.total_steps(),
        base_revision=revision,
        batch_size=recipe.batch_size,
        accumulation=recipe.accumulation,
    )
    for text in _notes(material, newest, trainer.total_steps()):
        say("note", text=text)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if watch.drained:
        return Exit.DRAINED
    trainer.take_best()
    metrics = trainer.figures()
    if processes.is_first():
        done = output.write(
            trainer.accelerator.unwrap_model(trainer.model),
            folder / "output",
            source=material.source,
            base_revision=revision,
            recipe=material.chosen,
            passes=(recipe.batch_size, recipe.accumulation),
            tokenizer=material.tokenizer,
            rows=material.rows,
            used=material.used,
            looked_at=len(material.validation),
            left_out=material.left_out,
            system=material.system,
            metrics=metrics,
            dtype=dtype,
        )
        say("done", **done)
    return Exit.DONE


def check_begun(newest: Path, material: Material, revision: str) -> None:
    """Raise Refused where going on from the newest checkpoint would train something else than was begun."""
    again = "start it again, or start a new run, by hand in a folder without checkpoints."
    if base_of(newest) not in (None, revision):
        raise Refused(
            "wrong-base",
            f"The run began on other weights of {material.recipe.model} than those that are here now: "
            f"restore them and {again}",
        )
    if changed := changed_since(newest, begun_with(material.recipe, material.rows, material.system)):
        raise Refused(
            "recipe-changed",
            f"The run began with another value of {', '.join(changed)}: restore what was there and {again}",
        )


def _notes(material: Material, newest: Path | None, total_steps: int) -> Iterator[str]:
    """What people should know before the first step; that a run goes on a supervisor says itself."""
    if newest is None:
        yield from material.notes()
    elif not child.is_supervised():
        yield f"Goes on from the checkpoint of step {step_of(newest):,} of {total_steps:,}."


def judge(material: Material, shapes: Shapes, device: torch.device, dtype: torch.dtype) -> None:
    """Say what the training will take, and keep it from taking what answers will need. Raises DoesNotFit, or
    MustWait when only what is free now is too little.
    """
    recipe, room = material.recipe, Room.on(device)
    lengths = [len(sample.ids) for sample in material.train]
    judged = estimate(
        recipe,
        shapes,
        largest_pass=material.sampler.largest_pass(),
        longest_row=max(lengths),
        largest_look=material.largest_look,
        longest_held_out=max((len(sample.ids) for sample in material.validation), default=0),
        pictures=min(recipe.batch_size, material.pictures),
        tokens=material.tokens,
        look_tokens=material.look_tokens,
        device=device.type,
        weight_bytes=dtype.itemsize,
        free=room.free,
        total=room.total,
        speed=operations_per_second(device, dtype, inner=shapes.hidden, outer=shapes.intermediate),
    )
    say("estimate", **judged.fields())
    if judged.memory_mb > judged.total_mb:
        raise DoesNotFit(judged, recipe)
    room.take(judged.memory_mb * 1e6)


def make_trainer(
    material: Material,
    model: Any,
    checkpoints: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    watch: callbacks.Watch,
    revision: str | None = None,
) -> AdapterTrainer:
    """The trainer, ready to start or to go on. Its checkpoints name the `revision` of the base's weights."""
    trainer = AdapterTrainer(
        sampler=material.sampler,
        collators=_collators(material),
        begun_with=begun_with(material.recipe, material.rows, material.system),
        model=model,
        args=arguments(
            material.recipe, checkpoints, device=device, dtype=dtype, evaluates=bool(material.validation)
        ),
        train_dataset=batches.as_dataset(material.train),
        eval_dataset=batches.as_dataset(material.validation) if material.validation else None,
        processing_class=material.tokenizer,
        peft_config=base.lora_config(material.recipe, revision),
        callbacks=[watch],
    )
    watch.trainer, trainer.breaks_off = trainer, watch.breaks_off
    return trainer


def _collators(material: Material) -> tuple[Any, Any]:
    """For the rows that are learnt, and for those held out."""
    if material.packed:
        return batches.PackedCollator(), batches.PackedCollator()
    pictures = any(sample.picture is not None for sample in (*material.train, *material.validation))
    processor = base.open_image_processor(material.source) if pictures else None
    soft = material.tokenizer.convert_tokens_to_ids("<image_soft_token>") if pictures else None
    train, validation = (
        batches.PaddedCollator(
            pad_id=material.tokenizer.pad_token_id,
            soft_id=soft,
            image_processor=processor,
            pictures=[sample.picture for sample in samples],
        )
        for samples in (material.train, material.validation)
    )
    return train, validation
