"""Fine-tuning as the official MedGemma notebook and the articles after it do it; what ours is compared with.

Batches of 4 padded to the longest, 4 of them a step; eager attention; gradient checkpointing; the loss over
all tokens; LoRA (r 16, alpha 16, dropout 0.05) on every linear layer, the vision tower's too; learning rate
2e-4, linear. In its favour, its full copies of embedding and output layer (`modules_to_save`) are left out,
and what TRL has learnt since (a loss in tiles) is left in.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from services.worker_train.batches import PaddedCollator
from services.worker_train.tokens import Sample


def train(
    model: Any, tokenizer: Any, samples: Sequence[Sample], *, dtype: torch.dtype, folder: str
) -> tuple[Any, float]:
    """One pass over the samples; returns the adapted model and the seconds that the steps took."""
    model.set_attn_implementation("eager")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            optim="adamw_torch_fused",
            learning_rate=2e-4,
            max_grad_norm=0.3,
            warmup_steps=math.ceil(0.03 * len(samples) / 16),
            lr_scheduler_type="linear",
            bf16=dtype is torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=PaddedCollator(pad_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_dict(
            {name: [sample.ids.tolist() for sample in samples] for name in ("input_ids", "labels")}
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=16,
            lora_dropout=0.05,
            bias="none",
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train()
    return trainer.model, time.monotonic() - started
