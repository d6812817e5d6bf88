"""GGUF files: the weights, configuration and tokenizer that were put in come out, as an ordinary model; and one line for each failure."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from demask.chat_format import ChatFormat
from demask.cli import main
from demask.models import gguf, load
from demask.models.convert import convert
from demask.models.merge import merge
from demask.settings import parse_train
from demask.stages.train import train
from demask.types import Document, InputError, write_documents
from tests.gguf_files import native_model, native_tokenizer, write_gguf

TEXTS = ["Ann keeps 12 bees.\n\n1984 was the year.", "The woman is called Ann.  7", "An empty list is []<|im_end|>\n"]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([native_tokenizer().encode(TEXTS[0])])).logits


# -- what comes out ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_computes_what_the_same_weights_do_natively(tied, tmp_path):
    native = native_model(tie_word_embeddings=tied)
    model = load.load_model(write_gguf(tmp_path / "m.gguf", native))
    assert torch.equal(logits(model), logits(native))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert load.stored_dtype(str(tmp_path / "m.gguf")) is torch.float32
    half = load.load_model(str(tmp_path / "m.gguf"), torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.model.rotary_emb.inv_freq.dtype is torch.float32
    assert half.config._attn_implementation == "eager"


def test_packed_weights_are_unpacked_as_gguf_does(tmp_path):
    kind, native = GGMLQuantizationType.Q8_0, native_model()
    model = load.load_model(write_gguf(tmp_path / "m.gguf", native, kind=kind))
    for name in ("model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"):
        weight = native.state_dict()[name].numpy()
        unpacked = dequantize(quantize(weight, kind), kind)
        assert 0 < np.abs(unpacked - weight).max() < 0.01
        assert np.array_equal(model.state_dict()[name].numpy(), unpacked)


def test_the_configuration_is_plain_and_the_context_the_files(file):
    config, tokenizer = load.load_config(file), load.load_tokenizer(file)
    assert load.context_length(config, tokenizer) == tokenizer.model_max_length == 384
    assert (config.architectures, config.dtype) == (["LlamaForCausalLM"], torch.float32)
    assert load.parameter_counts(config) == load.parameter_counts(native_model().config)
    model = load.load_model(file)
    assert "quantization_config" not in model.config.to_dict()
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (
        native_tokenizer().eos_token_id,
        native_tokenizer().pad_token_id,
    )


@pytest.mark.parametrize("pre", ["default", "smollm"])
def test_the_tokenizer_is_the_files(pre, tmp_path):
    found, native = load.load_tokenizer(write_gguf(tmp_path / "m.gguf", pre=pre)), native_tokenizer(pre)
    for text in TEXTS:
        assert found.encode(text) == native.encode(text)
        assert found.encode(text, split_special_tokens=True) == native.encode(text, split_special_tokens=True)
    assert found.get_vocab() == native.get_vocab()
    assert (found.bos_token_id, found.eos_token, found.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    chat, expected = ChatFormat(found, "Be brief."), ChatFormat(native, "Be brief.")
    assert (chat.head, chat.middle, chat.end, chat.stop_ids()) == (expected.head, expected.middle, expected.end, expected.stop_ids())


def test_a_vocabulary_of_single_digits_is_split_at_each(tmp_path):
    """Else a line end before a number would not join the one before it."""
    files = {pre: write_gguf(tmp_path / f"{pre}.gguf", pre=pre) for pre in ("default", "smollm")}
    assert load.load_tokenizer(files["default"]).backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")[1:] == [
        ("Ċ", (1, 2)),
        ("Ċ", (2, 3)),
        ("12", (3, 5)),
    ]
    assert load.load_tokenizer(files["smollm"]).backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")[1:] == [
        ("ĊĊ", (1, 3)),
        ("1", (3, 4)),
        ("2", (4, 5)),
    ]


def test_the_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    file, read = write_gguf(tmp_path / "m.gguf"), []
    metadata = gguf.read_gguf_metadata
    monkeypatch.setattr(gguf, "read_gguf_metadata", lambda path: read.append(path) or metadata(path))
    load.load_tokenizer(file).add_tokens(["new"])  # of a copy
    assert "new" not in load.load_tokenizer(file).get_vocab()
    load.load_config(file)
    load.load_model(file)
    assert read == [file]
    write_gguf(Path(file), native_model(max_position_embeddings=96))
    os.utime(file, ns=(1, 1))
    assert load.load_config(file).max_position_embeddings == 96
    assert read == [file, file]


# -- names ---------------------------------------------------------------------------------------------------------------------------


def test_a_folder_with_one_file_stands_for_it(file, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    shutil.copy(file, tmp_path / "one/Small.GGUF")
    (tmp_path / "one/README.md").write_text("A model.")
    assert load.model_folder(str(tmp_path / "one")) == str(tmp_path / "one")
    assert torch.equal(logits(load.load_model(str(tmp_path / "one"))), logits(native_model()))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load.model_folder("~/one/Small.GGUF") == str(tmp_path / "one/Small.GGUF")
    assert load.model_folder(file) == file


def test_a_folder_with_a_model_of_its_own_is_that_model(file, tmp_path):
    convert(file, str(tmp_path / "m"))
    shutil.copy(file, tmp_path / "m/other.gguf")
    assert gguf.gguf_file(str(tmp_path / "m")) is None
    assert load.load_config(str(tmp_path / "m")).architectures == ["LlamaForCausalLM"]


# -- converting ----------------------------------------------------------------------------------------------------------------------


def test_a_converted_file_is_an_ordinary_folder(file, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["convert", file, str(tmp_path / "native")])
    assert done.value.code == 0
    assert capsys.readouterr().out.endswith(f"converted model in {tmp_path / 'native'}\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    assert torch.equal(logits(model), logits(native_model()))
    assert model.dtype is torch.float32
    assert [tokenizer.encode(text) for text in TEXTS] == [native_tokenizer().encode(text) for text in TEXTS]
    assert tokenizer.chat_template == native_tokenizer().chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|endoftext|>", 384)
    assert json.loads((tmp_path / "native/generation_config.json").read_text())["eos_token_id"] == native_tokenizer().eos_token_id
    written = "".join(path.read_text() for path in (tmp_path / "native").glob("*.json"))
    assert "quantization" not in written
    assert str(Path(file).parent) not in written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native"]
    model.save_pretrained(tmp_path / "again")
    assert not load.convertible(str(tmp_path / "native"))
    with pytest.raises(InputError, match=r"is in the native layout already \(llama\); there is nothing to convert$"):
        convert(str(tmp_path / "native"), str(tmp_path / "twice"))


# -- training ------------------------------------------------------------------------------------------------------------------------


def flags(file: str, out: Path, *more: str) -> list[str]:
    write_documents(out.parent / "d.jsonl", [Document("a", "Ann keeps bees."), Document("b", "The mason met the baker.")])
    given = f"--model_name_or_path {file} --documents {out.parent}/d.jsonl --output_dir {out} --max_steps 2 --learning_rate 1e-2"
    given += " --use_cpu true --bf16 false --disable_tqdm true --per_device_train_batch_size 2"
    return [*given.split(), *more]


def test_a_model_trained_on_a_file_is_an_ordinary_folder(file, tmp_path):
    record = train(*parse_train(flags(file, tmp_path / "out")))
    assert record["status"] == "finished"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype is torch.float32
    assert not torch.equal(logits(model), logits(native_model()))
    assert load.load_tokenizer(str(tmp_path / "out")).init_kwargs["demask_mask"] == "[]"
    assert record["plan"]["mask_token"]["token"] == "[]"


def test_an_adapter_over_a_file_is_merged_into_it(file, tmp_path):
    train(*parse_train(flags(file, tmp_path / "lora", "--use_peft", "true")))
    assert load.adapter_base(str(tmp_path / "lora")) == file
    merge(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert load.stored_dtype(str(tmp_path / "merged")) is torch.float32
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, logits(load.load_model(str(tmp_path / "lora"))), rtol=0, atol=1e-5)
    assert not torch.equal(merged, logits(native_model()))
    assert load.load_tokenizer(str(tmp_path / "merged")).init_kwargs["demask_mask"] == "[]"


def test_a_file_is_evaluated_and_talked_to(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "q.jsonl").write_text('{"question": "Who keeps bees?", "answer": "Ann", "direction": "backward"}\n')
    with pytest.raises(SystemExit) as done:
        main(f"eval --model_name_or_path {file} --questions {tmp_path}/q.jsonl --output_dir {tmp_path}/eval --max_new_tokens 4".split())
    assert done.value.code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("Who keeps bees?\n"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["chat", "--model_name_or_path", file, "--max_new_tokens", "4"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip()


def test_4_bits_are_made_of_a_native_folder_only(file, tmp_path, monkeypatch):
    monkeypatch.setattr("demask.stages.plan.is_bitsandbytes_available", lambda: True)
    with pytest.raises(InputError) as caught:
        train(*parse_train(flags(file, tmp_path / "out", "--use_peft", "true", "--load_in_4bit", "true")))
    assert str(caught.value) == f"load_in_4bit: '{file}' is not in the native format; write it in that first (demask convert)"


# -- failures ------------------------------------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    with pytest.raises(InputError) as caught:
        load.model_folder(f"{tmp_path}/gone.gguf")
    assert str(caught.value) == f"model '{tmp_path}/gone.gguf': no such file"
    get_peft_model(native_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    settings = tmp_path / "lora/adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": f"{tmp_path}/gone.gguf"}))
    with pytest.raises(InputError, match=r"gone.gguf': can't read its header as GGUF \(\[Errno 2\] No such file"):
        load.load_model(str(tmp_path / "lora"))


def test_several_files_in_a_folder(file, tmp_path, capsys):
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(SystemExit) as done:
        main(["convert", str(tmp_path), str(tmp_path / "out")])
    assert done.value.code == 2
    assert capsys.readouterr().err == f"demask: model '{tmp_path}': holds 2 .gguf files; name one of them ({tmp_path}/a.gguf, ...)\n"


def cut(file: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])


FAULTS = {
    # name: (what write_gguf is given, what is done to the file, what the message holds)
    "empty": ({}, lambda file: file.write_bytes(b""), "can't read its header as GGUF ("),
    "wrong magic": ({}, lambda file: file.write_bytes(b"GGML" + file.read_bytes()[4:]), "does not start with the GGUF magic bytes"),
    "another version": ({}, lambda file: file.write_bytes(b"GGUF\x09" + file.read_bytes()[5:]), "is GGUF v9; "),
    "cut in the header": ({}, lambda file: cut(file, 0.05), "can't read its header as GGUF ("),
    "cut in the weights": ({}, lambda file: cut(file, 0.6), "can't read its header as GGUF ("),
    "no tokenizer": ({"tokenizer": False}, lambda file: None, "holds no tokenizer"),
    "unknown architecture": ({"arch": "zork"}, lambda file: None, "GGUF model with architecture zork is not supported yet"),
    "no language model": ({"arch": "t5"}, lambda file: None, "its architecture (t5) is no language model that writes text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_found_before_the_weights_load(fault, tmp_path, capsys):
    options, spoil, message = FAULTS[fault]
    file = Path(write_gguf(tmp_path / "m.gguf", **options))
    spoil(file)
    for arguments in (["convert", str(file), str(tmp_path / "out")], ["train", *flags(str(file), tmp_path / "out"), "--dry_run", "true"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"demask: model '{file}': ")
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_not_made_up(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(InputError) as caught:
        load.load_model(write_gguf(tmp_path / "m.gguf", leave_out=name))
    assert str(caught.value) == f"model '{tmp_path}/m.gguf': its weights lack 1 tensors, the first is {name}"
