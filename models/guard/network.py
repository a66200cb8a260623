"""The classifier as a torch module: MiniLM, and one linear layer for answers and one for questions."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from shared.guard.classifier import OUTPUT_LABELS, QUESTION_LABELS

#: Of the published file, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Network(nn.Module):
    """Reads `[CLS] context [SEP] text [SEP]` and gives logits for both sides."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(0.1)
        self.answer = nn.Linear(2 * config.hidden_size, len(OUTPUT_LABELS))
        self.question = nn.Linear(2 * config.hidden_size, len(QUESTION_LABELS))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Judge a batch.

        Args:
            input_ids, attention_mask, token_type_ids: (N, L) integers; type 1 marks the judged text.

        Returns:
            (N, len(OUTPUT_LABELS)) and (N, len(QUESTION_LABELS)) logits.
        """
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        judged = (token_type_ids * attention_mask).unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * judged).sum(1) / judged.sum(1).clamp(min=1)
        read = self.dropout(torch.cat([hidden[:, 0], mean], dim=-1))
        return self.answer(read), self.question(read)
