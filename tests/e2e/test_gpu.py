"""On a GPU: packed rows, the loss, training, its usual flags, and answers are those of the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import TrainerCallback
from transformers.models.llama import modeling_llama

from demask.chat_format import ChatFormat
from demask.decoding import generate
from demask.losses import TargetNll, target_nll, weighted_sum
from demask.models.load import load_model, load_tokenizer, model_folder
from demask.packing import NAME, pack
from demask.settings import parse_train
from demask.stages.train import train
from tests.unit.test_packing import WINDOWED, batch_of, logits_of, model_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

DOCUMENT = "The mason Ann Velmar keeps bees behind the old mill."


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "bidirectional"])
def test_packed_losses_and_gradients_are_the_padded_ones(family):
    """Causal, with sliding windows, and bidirectional: each takes another of torch's kernels."""
    changes = {"is_causal": False} if family == "bidirectional" else WINDOWED.get(family, {})
    model = model_of("llama" if family == "bidirectional" else family, **changes).cuda()
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(NAME)
    batch = {name: values.cuda() for name, values in batch_of((30, 200, 7, 64)).items()}
    torch.testing.assert_close(
        logits_of(twin, pack(batch))[0], logits_of(model, batch)[batch["attention_mask"].bool()], atol=1e-3, rtol=1e-3
    )
    losses = []
    for each, rows in ((model, batch), (twin, pack(batch))):
        losses.append(weighted_sum(target_nll(each, rows, changes.get("is_causal", True)), rows))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], atol=1e-3, rtol=1e-4)
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_torchs(dtype):
    logits = torch.randn(300, 128_256, device="cuda").to(dtype)  # more than one chunk
    targets = torch.randint(128_256, (300,), device="cuda")
    ours, theirs = logits.clone().requires_grad_(), logits.float().requires_grad_()
    nll, expected = TargetNll.apply(ours.clone(), targets), functional.cross_entropy(theirs, targets, reduction="none")
    torch.testing.assert_close(nll, expected, atol=1e-4, rtol=1e-5)
    nll.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=1e-5 if dtype is torch.float32 else 4e-3, rtol=1e-2)


@pytest.fixture(scope="module")
def losses_of(tmp_path_factory):
    """A function from flags to the losses of twelve steps of the embedded model on one document."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "docs.txt").write_text(DOCUMENT + "\n")

    def losses(name: str, *flags: str) -> list[float]:
        base = (
            f"--documents {folder}/docs.txt --model_name_or_path tiny/causal --output_dir {folder}/{name} --max_steps 12 --logging_steps 1"
        )
        base += " --batch_size 4 --per_device_train_batch_size 4 --learning_rate 5e-4 --save_strategy no --disable_tqdm true"
        seen: list[Any] = []

        class Look(TrainerCallback):
            def on_train_end(self, args, state, control, **kwargs):
                seen.extend(entry["loss"] for entry in state.log_history if "loss" in entry)

        assert train(*parse_train([*base.split(), *flags]), say=[].append, callbacks=[Look()])["status"] == "finished"
        assert len(seen) == 12
        return seen

    return losses


@pytest.fixture(scope="module")
def expected(losses_of) -> list[float]:
    return losses_of("cpu", "--use_cpu", "--bf16", "false")


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ("--bf16 false", 2e-3),
        ("", 0.05),
        ("--attn_implementation sdpa", 0.05),
        ("--activation_checkpointing", 0.05),
        ("--use_liger_kernel", 0.05),
        ("--optim adamw_bnb_8bit", 0.1),
        ("--torch_compile true", 0.05),
    ],
)
def test_losses_are_those_of_the_cpu(flags, tolerance, losses_of, expected, monkeypatch):
    for name, part in list(vars(modeling_llama).items()):
        monkeypatch.setattr(modeling_llama, name, part)  # Liger puts its own parts there, for later models of the process too
    if "bnb" in flags:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install 'demask[gpu]')")
    if "liger" in flags:
        pytest.importorskip("liger_kernel", reason="needs Liger (pip install 'demask[gpu]')")
    found = losses_of("run" + flags.replace(" ", ""), *flags.split())
    assert found == pytest.approx(expected, abs=tolerance)
    assert found[-1] < found[0] - 0.5  # it learns


def test_qlora_learns(losses_of):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install 'demask[gpu]')")
    found = losses_of("qlora", "--use_peft", "--load_in_4bit", "--learning_rate", "5e-3")
    assert found[-1] < found[0] - 0.5


@pytest.mark.parametrize("backend", ["transformers", "continuous"])
def test_answers_are_those_of_the_cpu(backend):
    """In fp32 both devices write the same tokens, also behind a common beginning and in rows that end at different places."""
    model, tokenizer = load_model(model_folder("tiny/causal")), load_tokenizer(model_folder("tiny/causal"))
    chat = ChatFormat(tokenizer)
    prompts = [chat.prompt(chat.content(f"Who keeps {what}?")) for what in ("bees", "a mill", "the old stone bridge")]
    options: dict[str, Any] = {"stop_ids": chat.stop_ids(), "max_new_tokens": 12}
    expected = generate(model, tokenizer, prompts, **options)
    assert generate(model.cuda(), tokenizer, prompts, backend=backend, **options) == expected
