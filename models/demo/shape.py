"""The demo model's shape: a Gemma 3 with a SigLIP tower, small enough to train on two cores.

Knows nothing of its data or its training. Nothing but the sizes differs from Google's Gemma 3, so code that
runs on this model runs on MedGemma.
"""

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
    SiglipVisionConfig,
)

from models.demo.tokenizer import SPECIAL_TOKENS

#: Side of the square picture that the vision tower reads, in pixels.
IMAGE_SIZE = 64
#: Tokens that one picture takes in the prompt.
IMAGE_TOKENS = 16
#: Longest prompt plus answer, in tokens.
CONTEXT = 2048

_ID = {token: index for index, token in enumerate(SPECIAL_TOKENS)}


def model_config(vocab_size: int) -> Gemma3Config:
    """The configuration for a tokenizer of ``vocab_size`` entries: about 6.3 million parameters."""
    text = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=896,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=CONTEXT,
        sliding_window=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        pad_token_id=_ID["<pad>"],
        eos_token_id=_ID["<eos>"],
        bos_token_id=_ID["<bos>"],
    )
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        vision_use_head=False,
    )
    return Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=_ID["<start_of_image>"],
        eoi_token_index=_ID["<end_of_image>"],
        image_token_index=_ID["<image_soft_token>"],
        pad_token_id=_ID["<pad>"],
        eos_token_id=[_ID["<eos>"], _ID["<end_of_turn>"]],
        bos_token_id=_ID["<bos>"],
    )


def new_model(vocab_size: int) -> Gemma3ForConditionalGeneration:
    """An untrained model, its weights drawn from torch's global generator."""
    model = Gemma3ForConditionalGeneration(model_config(vocab_size))
    model.generation_config = GenerationConfig(
        pad_token_id=_ID["<pad>"],
        eos_token_id=[_ID["<eos>"], _ID["<end_of_turn>"]],
        bos_token_id=_ID["<bos>"],
        do_sample=False,
    )
    return model
