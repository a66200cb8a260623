"""TRL's trainer with our order of rows, our checkpoints and a count of what is learnt. It knows no files of
a run.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from services.worker_train import begun
from services.worker_train.batches import IGNORED, StepSampler
from services.worker_train.checkpoints import aside_of, drop_old_checkpoints, written_aside
from services.worker_train.loss import answer_with_loss
from shared.training.recipe import Optimiser, Recipe

_OPTIMISERS = {
    Optimiser.ADAMW: "adamw_torch_fused",
    Optimiser.ADAMW_8BIT: "adamw_8bit",
    Optimiser.PAGED_ADAMW: "paged_adamw_32bit",
    Optimiser.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}
_ON_CPU = {"paged_adamw_32bit": "adamw_torch_fused", "paged_adamw_8bit": "adamw_8bit"}
_BEST = "best.safetensors"


def arguments(
    recipe: Recipe, checkpoints: Path, *, device: torch.device, dtype: torch.dtype, evaluates: bool
) -> SFTConfig:
    """The recipe in the trainer's words."""
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_ratio,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(recipe.schedule, recipe.schedule),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=_optimiser(recipe.optimiser, device),
        bf16=dtype is torch.bfloat16,
        fp16=False,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if evaluates else "no",
        eval_steps=recipe.eval_steps,
        save_strategy="steps",
        save_steps=recipe.save_steps,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would put a plausible number in the place of NaN
        disable_tqdm=True,
        report_to="none",
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device.type == "cuda",
        # Text never reaches the vision tower, so its adapters get no gradients.
        ddp_find_unused_parameters=recipe.target == "all-linear",
        ddp_backend="gloo" if device.type == "cpu" and recipe.processes > 1 else None,
    )


def _optimiser(chosen: Optimiser, device: torch.device) -> str:
    """In the trainer's words; a CPU has no other memory to page to."""
    name = _OPTIMISERS[chosen]
    return name if device.type == "cuda" else _ON_CPU.get(name, name)


class AdapterTrainer(SFTTrainer):
    """Trains the adapter; knows how many answer tokens each step learnt from and how long it took."""

    def __init__(
        self, *, sampler: StepSampler, collators: tuple[Any, Any], begun_with: dict[str, Any], **rest: Any
    ) -> None:
        """`collators`: for the rows that are learnt, and for those held out. `begun_with`: see begun.py."""
        super().__init__(data_collator=collators[0], **rest)
        self.remove_callback(PrinterCallback)
        answer_with_loss(self._model().get_base_model())
        self._sampler, self._eval_collator = sampler, collators[1]
        self._begun_with = begun_with
        self._into = Path(str(self.args.output_dir))
        self._started = time.monotonic()
        self._tokens = 0
        #: Asked before each pass of a look; true when the look is to be broken off.
        self.breaks_off: Callable[[], bool] = lambda: False
        #: Lowest loss on the held-out rows, and the weights that had it.
        self.best_loss = float("inf")
        self._best: dict[str, torch.Tensor] = {}

    # -- order

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return self._sampler

    def steps_per_epoch(self) -> int:
        """Steps of one pass over all rows, on all processes."""
        return self._sampler.steps()

    def total_steps(self) -> int:
        """Steps of the whole training, unless it stops early."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return math.ceil(self.args.num_train_epochs * self.steps_per_epoch())

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is up on any of the processes that train together."""
        if self.args.world_size == 1:
            return flag
        raised = torch.tensor([int(flag)], device=self.args.device)
        return bool(self.accelerator.gather(raised).any())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The held-out rows, which may have pictures of their own."""
        learning, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = learning

    def _run_epoch(self, *args: Any, **rest: Any) -> None:
        """As in `Trainer`, which would train one more step of a run that had ended before it was resumed."""
        if not self.control.should_training_stop:
            cast(Any, super())._run_epoch(*args, **rest)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The passes of the next step, and how many tokens they teach; here a step begins."""
        self._started = time.monotonic()
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._tokens = int(count) if count is not None else 0
        return batches, count

    def tokens_per_second(self) -> float:
        """Supervised tokens of the step that just ended, over all processes, by its time."""
        return self._tokens / max(time.monotonic() - self._started, 1e-9)

    # -- loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This pass's share of the step's mean loss, each answer token of the step counting the same.

        The tokens were counted over all processes, and the gradients will be averaged over them.
        """
        loss: torch.Tensor = model(**inputs) / num_items_in_batch * self.args.world_size
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss of a held-out answer token; nothing of a look that was broken off."""
        self._model().eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        # making an iterator draws a seed, and a look that is put off must leave the dropout as it is
        fork = torch.random.fork_rng(devices=[])
        with fork, torch.no_grad(), self.compute_loss_context_manager():
            for inputs in self.get_eval_dataloader(eval_dataset):
                if self.breaks_off():
                    return {}
                sums[0] += self._model()(**self._prepare_inputs(inputs))
                sums[1] += (inputs["labels"][:, 1:] != IGNORED).sum()
        loss, tokens = self.accelerator.reduce(sums).tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / tokens}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def figures(self) -> dict[str, Any]:
        """How it went, for the card."""
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        seen = {"steps": self.state.global_step, "first_loss": losses[0], "last_loss": losses[-1]}
        return seen | ({"eval_loss": self.best_loss} if self._best else {})

    # -- the best weights so far

    def keep_if_best(self, loss: float) -> bool:
        """Remember the weights when no earlier ones did better on the held-out rows; says whether they
        did.
        """
        if not loss < self.best_loss:
            return False
        self.best_loss = loss
        self._best = {
            name: weight.detach().to("cpu", copy=True).contiguous()
            for name, weight in self._trained().items()
        }
        return True

    def take_best(self) -> None:
        """Put the best weights in the place of the last."""
        with torch.no_grad():
            for name, weight in self._trained().items():
                if name in self._best:
                    weight.copy_(self._best[name])

    def _model(self) -> Any:
        return self.model

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self._model().named_parameters() if weight.requires_grad}

    # -- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As in `Trainer`, but written aside and renamed, without a model card of its own."""
        folder = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        with ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(written_aside(folder, name, checkpoints=folder))
            self._into = aside_of(folder, name)
            self.accelerator.wait_for_everyone()
            Trainer._save_checkpoint(self, model, trial)
            if self.args.should_save and self._best:
                save_file(self._best, self._into / name / _BEST, metadata={"loss": repr(self.best_loss)})
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                begun.write(self._into / name, self._begun_with)
                for path in (self._into / name).iterdir():
                    path.rename(self._into / path.name)
                (self._into / name).rmdir()
        if self.args.should_save:
            drop_old_checkpoints(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter alone; asking a hub whether its base has other embeddings is left out."""
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(str(output_dir), safe_serialization=True, save_embedding_layers=False)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._into)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained_in = {name: weight.dtype for name, weight in self._trained().items()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # over 4-bit weights TRL trains in bfloat16, and PEFT loads in float32
        for name, weight in self._trained().items():
            weight.data = weight.data.to(trained_in[name])
        path = Path(resume_from_checkpoint) / _BEST
        if path.exists():
            with safe_open(path, "pt") as file:
                self.best_loss = float(file.metadata()["loss"])
            self._best = load_file(path)
