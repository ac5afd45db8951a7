"""A tiny random ColPali: a 4 by 4 grid of patches a page, 8 dimensions, and a vocabulary of a few words. It needs no hub."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    PaliGemmaConfig,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

SIDE, PATCH = 32, 8
GRID = SIDE // PATCH
WORDS = "red green blue square table chart page Describe the image Question".split()


def write_checkpoint(folder: Path) -> Path:
    """Writes the checkpoint, in the layout of Hugging Face's ColPali."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>", "\n", ":", ".", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = GRID * GRID
    processor = ColPaliProcessor(image_processor=images, tokenizer=fast)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH, "projection_dim": 16}
    text = {**small, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(fast)}
    vlm = PaliGemmaConfig(
        vision_config=vision,
        text_config={**text, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
        image_token_index=fast.convert_tokens_to_ids("<image>"),
        projection_dim=16,
        hidden_size=16,
    )
    torch.manual_seed(0)
    ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm, embedding_dim=8)).eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pages(count: int) -> list[Image.Image]:
    """Images of random colours, two to three as high as wide."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (96, 64, 3), np.uint8)) for _ in range(count)]
