"""Makes models to measure on. They have the true shapes and random weights: their words mean nothing."""

import shutil
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1] / "models" / "demo" / "weights"


def layers_of_gemma_270m(folder: Path, tokenizer_folder: Path) -> Path:
    """Write the layers of gemma-3-270m (18 × 640) over the demo tokenizer's vocabulary.

    About 100 M parameters in float32. The token that would end an answer has an embedding of zeros, so that
    with tied weights its logit is 0 and it never wins: every answer has exactly the length asked for.
    """
    # here, not above: who measures lets other processes start before it spends seconds on these
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=[
            "full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(18)
        ],
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        tie_word_embeddings=True,
    )
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for token in (tokenizer.eos_token_id, end_of_turn):
            model.get_input_embeddings().weight[token].zero_()
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    for file in tokenizer_folder.glob("*token*"):
        shutil.copy(file, folder)
    for file in tokenizer_folder.glob("chat_template*"):
        shutil.copy(file, folder)
    return folder
