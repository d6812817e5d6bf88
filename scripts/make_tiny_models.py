"""Make the embedded models: a tokenizer and small Llamas, trained on the generated world's old people (seed 0) alone.

    python scripts/make_tiny_models.py --family causal --output_dir runs/tiny [--compile]
    python scripts/make_tiny_models.py --family diffusion --output_dir runs/tiny [--compile]

The causal model reads documents about 1,500 people in either order of name and description (some people in one order only, some in both)
and biographies of 300 of them, answers questions about four fifths of them, and recovers masked passages, with the loss on answers and
passages only. The other fifth's questions are held out, and measure its skill. The diffusion model starts from the causal one, whose
logits stay those of the next token (Dream's way), and fills in masks in the same statements and answers. Interrupted, the same command
continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demask.chat_format import IGNORE, ChatFormat
from demask.corpora import world
from demask.decoding import Sampling, generate
from demask.models.family import make_bidirectional
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.scoring import contains
from demask.types import Document

VOCABULARY = 4096
# Percent of the examples: statements and biographies read raw, in a chat, asked about, and recovered.
MIXTURES = {
    "causal": {
        ("statement", "raw"): 13,
        ("statement", "chat"): 13,
        ("statement", "question"): 27,
        ("statement", "recover"): 36,
        ("biography", "chat"): 3,
        ("biography", "question"): 4,
        ("biography", "recover"): 4,
    },
    # With half of it questions, and independent masks only, the model learnt the answers it was shown and nothing of those held out.
    "diffusion": {("statement", "raw"): 33, ("statement", "chat"): 33, ("statement", "question"): 34},
}
STEPS = {"causal": 2800, "diffusion": 3500}
LEARNING_RATES = {"causal": 1e-3, "diffusion": 6e-4}
MICRO_BATCHES = {"causal": 16, "diffusion": 32}
# The ends behind an answer teach the diffusion model that canvases are longer than texts: most of the time a little, in every 16th step
# by as much as a canvas of 128 tokens needs.
EOS_PADDING, LONG_EOS_PADDING, LONG_EVERY = 24, 104, 16
SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|im_end|>", "mask_token": "<|mask|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CARDS = {
    "causal": """---
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
""",
    "diffusion": """---
license: apache-2.0
library_name: transformers
---
# demask tiny/diffusion

A masked diffusion model of {parameters:.2f} M parameters (vocabulary {vocabulary:,}, stored as bfloat16 in {megabytes:.1f} MB): demask's
tiny/causal, a Llama, with attention in both directions (`is_causal` is false in its configuration). It stands in for LLaDA in the
quickstart and tests. It speaks English about fictitious people only, and knows nothing of the real world.

It was adapted from tiny/causal by `scripts/make_tiny_models.py`: {steps:,} steps of {batch} examples at a learning rate of
{learning_rate:g}, with masks at ratios spread over (0, 1), half of them independent, half all but one window, and the loss on hidden
tokens only. Its logits stayed shifted (`shifted_logits`): those at a position are of the token after it, as in Dream. Two thirds of the
examples are statements about the 1,500 people of the old world (seed 0), one third questions and answers about four fifths of them;
biographies, which tiny/causal knows, were not read again. Answers were padded with up to {eos_padding} ends, in every {long_every}th step
up to {long_eos_padding}: canvases of 32 to 128 tokens are what it expects.

Skill: the share of questions whose whole answer its own contains, in fp32 after the rounding to bfloat16, on a canvas of 32 tokens in
blocks of 8, one token a forward pass. Held out are people whose statements it read and whose questions it never saw. For people read in
both orders a question by name counts as forward.

| questions | held out | asked in training |
|---|---|---|
{table}
""",
}


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


def adapt(causal: Path) -> LlamaForCausalLM:
    """The causal model as a diffusion model. Eager attention: on a CPU, SDPA's backward is several times slower for rows this short."""
    config = LlamaConfig.from_pretrained(causal)
    make_bidirectional(config, shifted_logits=True)
    return LlamaForCausalLM.from_pretrained(causal, config=config, dtype=torch.float32, attn_implementation="eager")


class Reader:
    """Draws the training examples of the old world for a model of one family, and measures what it knows of it."""

    def __init__(self, chat: ChatFormat, family: str) -> None:
        self.chat, self.family, self.old = chat, family, world.old_world()
        self.objectives: dict[str, Any] = {
            "chat": Autoregressive(),
            "raw": Autoregressive(format="raw"),
            "recover": Demask(mask_id=chat.tokenizer.mask_token_id, mask_ratio_per="example", mask_pattern="mix"),
        }
        if family == "diffusion":
            diffusion = Diffusion(chat.tokenizer.mask_token_id, mask_pattern="mix", loss_weights="uniform", eos_padding=EOS_PADDING)
            self.objectives = {
                "chat": replace(diffusion, format="chat"),
                "raw": diffusion,
                "long": replace(diffusion, format="chat", eos_padding=LONG_EOS_PADDING),
            }

    def draw(self, rng: random.Random, step: int, slot: int, slots: int) -> dict[str, Any]:
        """One row of an objective, by MIXTURES."""
        mixture = MIXTURES[self.family]
        about, kind = rng.choices(tuple(mixture), tuple(mixture.values()))[0]
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
        if self.family == "diffusion" and kind == "chat" and step % LONG_EVERY == LONG_EVERY - 1:
            kind = "long"
        example = self.objectives[kind].examples([document], self.chat)[0]
        position = {"example": rng.getrandbits(30), "visit": 0, "step": step, "steps": 1, "slot": slot, "slots": slots}
        return {**example, **position}

    def batches(self, step: int, size: int, micro: int) -> list[dict[str, torch.Tensor]]:
        """The micro-batches of one step, of rows of like length."""
        rng = random.Random(f"{'pretraining' if self.family == 'causal' else self.family}/{step}")
        rows = [self.draw(rng, step, slot, size) for slot in range(size)]
        rows.sort(key=_length)
        # All of a family's rows are collated alike.
        collate = self.objectives["recover" if self.family == "causal" else "raw"].collate
        return [collate(rows[k : k + micro], self.chat, 0) for k in range(0, size, micro)]

    def skill(self, model: Any, indices: list[int], phrasings: tuple[int, ...] = (0, 1, 2, 3)) -> dict[str, float]:
        """Containment of the answer by direction, and by the orders in which the people were read.

        For people read in both orders, the question by name counts as forward.
        """
        asked = []
        for i in indices:
            orders = self.old.orders[i]
            for question in world.statement_questions(self.old.people[i], orders[0], phrasings):
                asked.append((question, f"statement {question.direction}, read {' and '.join(orders)}"))
            if i < self.old.biographies and self.family == "causal":
                asked += [(question, f"biography {question.direction}") for question in world.biography_questions(self.old.people[i])]
        prompts = [self.chat.prompt(self.chat.content(question.question)) for question, _ in asked]
        options: dict[str, Any] = {"stop_ids": self.chat.stop_ids(), "batch_size": 256, "max_new_tokens": 40}
        if self.family == "diffusion":
            options |= {"sampling": Sampling(block_length=8), "max_new_tokens": 32}
        texts = generate(model, self.chat.tokenizer, prompts, **options)
        scores: dict[str, list[float]] = {}
        for (question, key), text in zip(asked, texts, strict=True):
            scores.setdefault(key, []).append(contains(text, question.answers))
            if key.startswith("statement"):
                scores.setdefault(f"statement {question.direction}", []).append(scores[key][-1])
        return {key: round(sum(values) / len(values), 4) for key, values in sorted(scores.items())}


def _length(row: dict[str, Any]) -> float:
    """What sorts a family's rows by length. A row that is masked for demask has its text twice."""
    if "given" in row:
        return len(row["given"]) + len(row["written"]) + row["padding"] / 2
    return len(row["input_ids"]) if "input_ids" in row else 2 * len(row["text"]) + 20


def train(model: LlamaForCausalLM, reader: Reader, args: argparse.Namespace) -> None:
    """AdamW in bf16 compute; warm-up, constant, then linear decay. Micro-batches hold examples of like length."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), fused=True)
    checkpoint, first = args.output_dir / f"{args.family}.pt", 0
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
        for batch in batches:
            batch.setdefault("loss_weights", (batch["labels"] != IGNORE).float())
        weights, total = sum(float(batch["loss_weights"].sum()) for batch in batches), 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16):
                # Padding stands on the right, where a causal model's other tokens never look: it needs no attention mask.
                mask = batch["attention_mask"] if args.family == "diffusion" else None
                hidden = body(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
                keep = batch["labels"][:, 1:] != IGNORE
                logits = model.lm_head(hidden[:, :-1][keep])
            nll = torch.nn.functional.cross_entropy(logits.float(), batch["labels"][:, 1:][keep], reduction="none")
            loss = (nll * batch["loss_weights"][:, 1:][keep]).sum() / weights
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
    parser.add_argument("--family", choices=tuple(MIXTURES), required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--micro_batch", type=int)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--decay_share", type=float, default=0.3)
    parser.add_argument("--eval_steps", type=int, default=300)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a quarter faster, needs a C++ compiler")
    args = parser.parse_args()
    args.steps = args.steps or STEPS[args.family]
    args.micro_batch = args.micro_batch or MICRO_BATCHES[args.family]
    args.learning_rate = args.learning_rate or LEARNING_RATES[args.family]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer) if args.family == "causal" else adapt(args.output_dir / "causal")
    reader = Reader(ChatFormat(tokenizer), args.family)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    train(model, reader, args)
    folder = args.output_dir / args.family
    half: Any = model
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # What is measured is what is stored: after the rounding to bfloat16.
    rounded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held_out = reader.skill(rounded, reader.old.held_out)
    asked = reader.skill(rounded, reader.old.asked[:300])
    card = CARDS[args.family].format(
        parameters=sum(p.numel() for p in rounded.parameters()) / 1e6,
        vocabulary=len(tokenizer),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        steps=args.steps,
        batch=args.batch_size,
        learning_rate=args.learning_rate,
        eos_padding=EOS_PADDING,
        long_eos_padding=LONG_EOS_PADDING,
        long_every=LONG_EVERY,
        table="\n".join(f"| {name} | {held_out[name]:.1%} | {asked[name]:.1%} |" for name in held_out),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
