"""Make tiny-thinker from nothing: ``python -m tools.tiny_thinker.train``.

Trains a tokenizer and a Qwen3 model of about a million parameters on the texts of
:mod:`tools.tiny_thinker.curriculum` and writes both in Hugging Face format. Muon for
the matrices and AdamW for the rest: learns faster here than AdamW alone. The same seed
gives the same weights on the same machine, with one thread and with two.
``--device cuda`` trains on a GPU, where a step this small is mostly waiting for Python.
``--start DIR`` goes on from a trained model, at a fifth of the rate: a tenth of the
tokens teach it what was added to the curriculum.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

from helpers.models import TINY_THINKER_DIRECTORY
from tools.tiny_thinker.mix import CHAT_TEMPLATE, completion_text, prompt_text, sample

VOCABULARY = 1280
MAX_LENGTH = 1024
# Qwen's pre-tokenizer: words, single digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As in Qwen3, the think markers are added tokens that decoding does not skip.
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK_TOKENS = ["<think>", "</think>"]
MARKERS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS + THINK_TOKENS)))


def build_tokenizer(seed: int):
    """Train a byte-level BPE tokenizer of ``VOCABULARY`` tokens, markers included."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(seed)
    texts = []
    for _ in range(20_000):
        example = sample(rng)
        texts.append(MARKERS.sub("\n", prompt_text(example) + completion_text(example)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(THINK_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in THINK_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer, seed: int):
    """Make a Qwen3 model with random weights, in float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).float()


def batches(tokenizer, seed: int, total_tokens: int, step_tokens: int):
    """Yield ``(input_ids, labels, tokens)``: lists of equal-length rows.

    Examples of like length share a step, so there is little padding; labels are -100
    on the prompt and on the padding.
    """
    rng, made = random.Random(seed), 0
    pad = tokenizer.pad_token_id
    while made < total_tokens:
        prompts, completions = [], []
        for _ in range(2_000):
            example = sample(rng)
            prompts.append(prompt_text(example))
            completions.append(completion_text(example))
        heads = tokenizer(prompts).input_ids
        tails = tokenizer(completions).input_ids
        rows = [(h, t) for h, t in zip(heads, tails, strict=True)]
        rows = [(h, t) for h, t in rows if len(h) + len(t) <= MAX_LENGTH]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        steps, group, width = [], [], 0
        for row in rows:
            length = len(row[0]) + len(row[1])
            if group and (len(group) + 1) * max(width, length) > step_tokens:
                steps.append(group)
                group, width = [], 0
            group.append(row)
            width = max(width, length)
        steps.append(group)
        rng.shuffle(steps)
        for group in steps:
            width = max(len(h) + len(t) for h, t in group)
            ids, labels, count = [], [], 0
            for head, tail in group:
                fill = width - len(head) - len(tail)
                ids.append(head + tail + [pad] * fill)
                labels.append([-100] * len(head) + tail + [-100] * fill)
                count += len(head) + len(tail)
            made += count
            yield ids, labels, count


class Muon:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) in float32.

    torch.optim.Muon computes in bfloat16, which on a CPU without instructions for that
    type takes four times as long as all the rest of a step. Matrices of one shape are
    made orthogonal together.
    """

    MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
    ITERATIONS = 5

    def __init__(self, matrices, rate: float):
        import torch

        by_shape = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self.groups = [
            (group, torch.zeros(len(group), *shape, device=group[0].device))
            for shape, group in by_shape.items()
        ]
        self.rate = rate

    def step(self, scale: float) -> None:
        """Update the matrices by their gradients, at ``scale`` times the rate."""
        import torch

        rate = self.rate * scale
        with torch.no_grad():
            for group, momentum in self.groups:
                gradient = torch.stack([matrix.grad for matrix in group])
                momentum.lerp_(gradient, 1 - self.MOMENTUM)
                update = self._orthogonal(gradient.lerp(momentum, self.MOMENTUM))
                rows, columns = update.shape[1:]
                update *= max(1, rows / columns) ** 0.5
                for matrix, change in zip(group, update, strict=True):
                    matrix.mul_(1 - rate * self.WEIGHT_DECAY).sub_(change, alpha=rate)

    def _orthogonal(self, x):
        """Make matrices of shape (count, rows, columns) orthogonal, roughly."""
        wide = x.shape[1] <= x.shape[2]
        x = x if wide else x.mT
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        a, b, c = self.COEFFICIENTS
        for _ in range(self.ITERATIONS):
            square = x @ x.mT
            x = a * x + (b * square + c * square @ square) @ x
        return x if wide else x.mT


def begin(start: Path | None, seed: int):
    """Return a tokenizer, a model in float32, and the share of the full rate.

    ``start`` is the folder of a trained model, or None for one from nothing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if start is None:
        tokenizer = build_tokenizer(seed)
        return tokenizer, build_model(tokenizer, seed), 1.0
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer, AutoModelForCausalLM.from_pretrained(start).float(), 0.2


def loss_of(model, ids: list[list[int]], labels: list[list[int]], device: str):
    """Compute the cross-entropy of a step's rows, where there is a label."""
    import torch

    ids = torch.tensor(ids, device=device)
    labels = torch.tensor(labels, device=device)[:, 1:]
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = labels != -100
    logits = model.lm_head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits, labels[wanted])


def train(
    out: Path,
    seed: int,
    total_tokens: int,
    step_tokens: int,
    threads: int,
    device: str,
    start: Path | None = None,
):
    """Train and write the model to ``out``; returns the trained model."""
    import torch

    torch.set_num_threads(threads)
    tokenizer, model, peak = begin(start, seed)
    model.to(device)
    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, rate=0.02)
    adam_rate = 4e-3
    adam = torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{total_tokens:,} tokens, seed {seed}, {threads} threads",
        flush=True,
    )
    seen, running, started, shown = 0, None, time.monotonic(), 0
    for ids, labels, count in batches(tokenizer, seed + 1, total_tokens, step_tokens):
        fraction = min(seen / total_tokens, 1.0)
        scale = peak * min(1.0, seen / 50_000 + 0.02) * max(1 - fraction, 0.02)
        adam.param_groups[0]["lr"] = adam_rate * scale
        model.zero_grad()
        loss = loss_of(model, ids, labels, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step(scale)
        adam.step()
        seen += count
        value = loss.item()
        running = value if running is None else 0.98 * running + 0.02 * value
        if seen - shown >= 200_000:
            shown = seen
            minutes = (time.monotonic() - started) / 60
            print(
                f"{seen:>12,} tokens  loss {running:.4f}  {minutes:.1f} min", flush=True
            )
    save(model, tokenizer, out)
    return model


def save(model, tokenizer, out: Path) -> None:
    """Write config, weights, tokenizer, chat template and generation config."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(
        do_sample=True, temperature=0.6, top_p=0.95, top_k=20,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TINY_THINKER_DIRECTORY)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=25_000_000)
    parser.add_argument("--step-tokens", type=int, default=1_500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    parser.add_argument("--start", type=Path, help="a trained model to go on from")
    a = parser.parse_args()
    train(a.out, a.seed, a.tokens, a.step_tokens, a.threads, a.device, a.start)
    print(json.dumps({"written": a.out.name, "seed": a.seed, "tokens": a.tokens}))


if __name__ == "__main__":
    main()
