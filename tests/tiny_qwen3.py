"""A random Qwen3 of 0.4 M parameters, for tests that need an engine and no sense."""

import subprocess
import sys
from pathlib import Path

from helpers.models import TINY_THINKER, TINY_THINKER_DIRECTORY

BUILD = """
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

directory = sys.argv[1]
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
tokens = [*alphabet, *special, "<think>", "</think>"]
core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
core.decoder = decoders.ByteLevel()
core.add_special_tokens(special)
core.add_tokens(["<think>", "</think>"])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
)
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n<think>\\n"
    "{% endif %}"
)
tokenizer.save_pretrained(directory)
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=384, hidden_size=128, intermediate_size=384, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=64,
    max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None,
    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)
Qwen3ForCausalLM(config).float().save_pretrained(directory)
"""


def model_for_tests(directory: Path) -> str:
    """The embedded model where it is trained, else a random one made in `directory`."""
    if (TINY_THINKER_DIRECTORY / "model.safetensors").is_file():
        return TINY_THINKER
    subprocess.run([sys.executable, "-c", BUILD, str(directory)], check=True)
    return str(directory)
