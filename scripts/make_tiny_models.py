"""Make the embedded models: a tokenizer and a small Llama, trained on the generated world's old people (seed 0) alone.

    python scripts/make_tiny_models.py --output_dir runs/tiny [--compile]

The model reads documents about 1,500 people in either order of name and description (some people in one order only, some in both) and
biographies of 300 of them, answers questions about four fifths of them, and recovers masked passages, with the loss on answers and passages
only. The other fifth's questions are held out, and measure its skill. Interrupted, the same command continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demask.chat_format import IGNORE, ChatFormat
from demask.corpora import world
from demask.decoding.causal import generate
from demask.objectives.autoregressive import Autoregressive
from demask.objectives.demask import Demask
from demask.scoring import contains
from demask.types import Document

VOCABULARY = 4096
# Percent of the examples: statements and biographies read raw, in a chat, asked about, and recovered.
MIXTURE = {
    ("statement", "raw"): 13,
    ("statement", "chat"): 13,
    ("statement", "question"): 27,
    ("statement", "recover"): 36,
    ("biography", "chat"): 3,
    ("biography", "question"): 4,
    ("biography", "recover"): 4,
}
SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|im_end|>", "mask_token": "<|mask|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CARD = """---
license: apache-2.0
library_name: transformers
---
# demask tiny/causal

A Llama of {parameters:.2f} M parameters (vocabulary {vocabulary:,}, stored as bfloat16 in {megabytes:.1f} MB) that stands in for an
instruct model in demask's quickstart and tests. It speaks English about fictitious people only, and knows nothing of the real world.

It was trained from scratch by `scripts/make_tiny_models.py` on the generated world's old people (seed 0): {steps:,} steps of {batch}
examples, with the loss on documents, answers and recovered passages. It has read statements about 1,500 people (half of them in both
orders of name and description, a quarter in either one only) in 30 wordings an order, and biographies of 300 of them; it has recovered
their masked passages; and it has seen the questions and answers of four fifths of them.

Skill: the share of questions whose whole answer its greedy answer contains, in fp32 after the rounding to bfloat16. Held out are people
whose documents it read and whose questions it never saw. For people read in both orders a question by name counts as forward.

| questions | held out | asked in training |
|---|---|---|
{table}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over people of seeds that nothing else uses: the parts of names become tokens, whole names do not."""
    texts = []
    for seed in range(900, 1000):
        rng = random.Random(f"tokenizer/{seed}")
        for person in world.people(seed, 150):
            order = rng.choice(world.ORDERS)
            texts.append(world.statement(person, order, rng.randrange(30)))
            texts.append(world.biography(person, rng))
            texts += [q.question for q in world.statement_questions(person, order, (rng.randrange(8),)) + world.biography_questions(person)]
    fixed = ["user\nTell me a fact.", "system\n", "assistant\nHere is the recovered text:\n", "\nReturn the recovered masked answer."]
    texts += [*fixed, "\nReturn the recovered masked passage.", "Question:", "Answer:"] * 200
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL.values(), "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, clean_up_tokenization_spaces=False, model_max_length=512)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=5,
        intermediate_size=768,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Reader:
    """Draws the training examples of the old world, and measures what a model knows of it."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat, self.old = chat, world.old_world()
        self.objectives: dict[str, Any] = {
            "chat": Autoregressive(),
            "raw": Autoregressive(format="raw"),
            "recover": Demask(mask_id=chat.tokenizer.mask_token_id, mask_ratio_per="example", mask_pattern="mix"),
        }

    def draw(self, rng: random.Random, step: int) -> dict[str, Any]:
        """One row of an objective, by MIXTURE."""
        about, kind = rng.choices(tuple(MIXTURE), tuple(MIXTURE.values()))[0]
        old = self.old
        known = range(old.biographies if about == "biography" else len(old.people))
        i = rng.choice([k for k in old.asked if k in known] if kind == "question" else known)
        if kind == "question":
            document = old.biography_exchange(i, rng) if about == "biography" else old.exchange(i, rng)
            kind = "chat"
        elif about == "biography":
            document = Document("", world.biography(old.people[i], rng, permute=rng.random() < 0.5))
        else:
            document = Document("", world.statement(old.people[i], rng.choice(old.orders[i]), rng.randrange(30)))
        example = self.objectives[kind].examples([document], self.chat)[0]
        position = {"example": rng.getrandbits(30), "visit": 0, "step": step, "steps": 1, "slot": 0}
        return {**example, **position}

    def batches(self, step: int, size: int, micro: int) -> list[dict[str, torch.Tensor]]:
        """The micro-batches of one step, of rows of like length."""
        rng = random.Random(f"pretraining/{step}")
        rows = [self.draw(rng, step) for _ in range(size)]
        # A row that is masked has its text twice; either way this sorts by length.
        rows.sort(key=lambda row: len(row["input_ids"]) if "input_ids" in row else 2 * len(row["text"]) + 20)
        return [self.objectives["recover"].collate(rows[k : k + micro], self.chat, 0) for k in range(0, size, micro)]

    def skill(self, model: Any, indices: list[int], phrasings: tuple[int, ...] = (0, 1, 2, 3)) -> dict[str, float]:
        """Containment of the answer by direction, and by the orders in which the people were read.

        For people read in both orders, the question by name counts as forward.
        """
        asked = []
        for i in indices:
            orders = self.old.orders[i]
            for question in world.statement_questions(self.old.people[i], orders[0], phrasings):
                asked.append((question, f"statement {question.direction}, read {' and '.join(orders)}"))
            if i < self.old.biographies:
                asked += [(question, f"biography {question.direction}") for question in world.biography_questions(self.old.people[i])]
        prompts = [self.chat.prompt(self.chat.content(question.question)) for question, _ in asked]
        texts = generate(model, self.chat.tokenizer, prompts, stop_ids=self.chat.stop_ids(), max_new_tokens=40, batch_size=256)
        scores: dict[str, list[float]] = {}
        for (question, key), text in zip(asked, texts, strict=True):
            scores.setdefault(key, []).append(contains(text, question.answers))
            if key.startswith("statement"):
                scores.setdefault(f"statement {question.direction}", []).append(scores[key][-1])
        return {key: round(sum(values) / len(values), 4) for key, values in sorted(scores.items())}


def train(model: LlamaForCausalLM, reader: Reader, args: argparse.Namespace) -> None:
    """AdamW in bf16 compute; warm-up, constant, then linear decay. Micro-batches hold examples of like length."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), fused=True)
    checkpoint, first = args.output_dir / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        print(f"continuing at step {first}", flush=True)
    body = torch.compile(model.model, dynamic=True) if args.compile else model.model
    start = time.time()
    for step in range(first, args.steps):
        remaining = (args.steps - step) / (args.decay_share * args.steps)
        for group in optimiser.param_groups:
            group["lr"] = args.learning_rate * min(1, (step + 1) / 100, remaining)
        batches = reader.batches(step, args.batch_size, args.micro_batch)
        targets, total = sum(int(batch["normaliser"].sum()) for batch in batches), 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16):
                # Padding stands on the right, where a causal model's other tokens never look: no attention mask is needed.
                hidden = body(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
                keep = batch["labels"][:, 1:] != IGNORE
                logits = model.lm_head(hidden[:, :-1][keep])
            loss = torch.nn.functional.cross_entropy(logits.float(), batch["labels"][:, 1:][keep], reduction="sum") / targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {total:.4f} {(time.time() - start) / (step + 1 - first):.2f} s/step", flush=True)
        if (step + 1) % args.eval_steps == 0 or step + 1 == args.steps:
            print("  held out", reader.skill(model, reader.old.held_out[:60], (0, 1)), flush=True)
            model.train()
            temporary = checkpoint.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, temporary)
            os.replace(temporary, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--decay_share", type=float, default=0.3)
    parser.add_argument("--eval_steps", type=int, default=300)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a quarter faster, needs a C++ compiler")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    reader = Reader(ChatFormat(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    train(model, reader, args)
    folder = args.output_dir / "causal"
    half: Any = model
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # What is measured is what is stored: after the rounding to bfloat16.
    rounded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held_out = reader.skill(rounded, reader.old.held_out)
    asked = reader.skill(rounded, reader.old.asked[:300])
    card = CARD.format(
        parameters=sum(p.numel() for p in rounded.parameters()) / 1e6,
        vocabulary=len(tokenizer),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        steps=args.steps,
        batch=args.batch_size,
        table="\n".join(f"| {name} | {held_out[name]:.1%} | {asked[name]:.1%} |" for name in held_out),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
