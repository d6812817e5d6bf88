"""Which token stands for a hidden one: the order of preference, what is passed over, and what is refused."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from demask.models.mask_token import MaskToken, choose_mask_token, refuse_mask_in_documents
from demask.types import Document, InputError
from tests.tokenizers import base, chatml, gemma, llama3, mistral


def words(*vocabulary: str, special: tuple[str, ...] = (), template: str | None = None, **options: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with special tokens that have no role, and roles by `options`."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("<unk>", *vocabulary))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **options)
    wrapped.chat_template = template
    return wrapped


def chosen(tokenizer, name: str | None = None) -> tuple[str, str]:
    mask = choose_mask_token(tokenizer, name)
    assert tokenizer.convert_tokens_to_ids(mask.token) == mask.id
    return mask.token, mask.reason


OWN, RESERVED = "the tokenizer's own mask token", "an unused reserved token of the tokenizer"
RARE, NAMED = "a rare token: the tokenizer reserves none", "named by the user"


def test_each_familys_choice():
    assert chosen(llama3()) == ("<|reserved_special_token_0|>", RESERVED)
    assert chosen(chatml()) == ("[]", RARE)
    assert chosen(gemma()) == ("[]", RARE)
    # A tokenizer that writes a word boundary before every text has this one with the boundary.
    assert mistral().convert_ids_to_tokens(choose_mask_token(mistral()).id) == "▁[]"


def test_the_tokenizers_own_comes_before_a_reserved_one():
    tokenizer = words("[]", special=("<|reserved_special_token_0|>",), mask_token="<mask>")
    assert chosen(tokenizer) == ("<mask>", OWN)


def test_a_reserved_one_comes_before_a_rare_one():
    assert chosen(words("[]", special=("<unused3>",))) == ("<unused3>", RESERVED)
    assert chosen(words("[]")) == ("[]", RARE)


@pytest.mark.parametrize(
    "token", ["<|reserved_special_token_17|>", "<unused0>", "[control_8]", "<|extra_3|>", "<SPECIAL_RESERVED_4>", "<reserved token 5>"]
)
def test_reserved_tokens_by_family(token):
    assert chosen(words("a", special=(token,))) == (token, RESERVED)


def test_special_tokens_that_are_not_reserved_are_passed_over():
    tokenizer = words("[]", special=("<|im_start|>", "<|fim_prefix|>", "<tool_call>"))
    assert chosen(tokenizer) == ("[]", RARE)


def test_a_reserved_token_with_a_role_is_passed_over():
    tokenizer = words("a", special=("<unused0>", "<unused1>"), pad_token="<unused0>")
    assert chosen(tokenizer) == ("<unused1>", RESERVED)


def test_a_reserved_token_in_the_template_is_passed_over():
    template = "{% for m in messages %}<unused0>{{ m.content }}<unused1>{% endfor %}"
    tokenizer = words("a", special=("<unused0>", "<unused1>", "<unused2>"), template=template)
    assert chosen(tokenizer) == ("<unused2>", RESERVED)


def test_of_several_reserved_ones_the_lowest_id_is_taken():
    assert choose_mask_token(words("a", special=("<unused5>", "<unused2>"))) == MaskToken("<unused5>", 2, RESERVED)


def test_the_users_name_comes_first():
    assert chosen(llama3(), "<|reserved_special_token_7|>") == ("<|reserved_special_token_7|>", NAMED)
    assert chosen(words("zyx", mask_token="<mask>"), "zyx") == ("zyx", NAMED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("<mask>", r"^mask_token: '<mask>' is \d tokens of this tokenizer, expected one$"),
        ("", r"^mask_token: '' is 0 tokens of this tokenizer, expected one$"),
    ],
)
def test_a_name_that_is_not_one_token_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        choose_mask_token(llama3(), name)


def test_a_name_outside_the_vocabulary_is_refused_though_it_is_one_token():
    with pytest.raises(InputError, match=r"^mask_token: 'zyx' is not in this tokenizer's vocabulary$"):
        choose_mask_token(words("a"), "zyx")


def test_a_tokenizer_that_offers_none_asks_for_a_name():
    with pytest.raises(InputError, match=r"^mask_token: this tokenizer has no mask token and reserves none; name .* --mask_token$"):
        choose_mask_token(words("a", "[", "]"))


def test_a_mask_token_set_by_the_user_of_the_library_counts_as_its_own():
    tokenizer = copy.deepcopy(base())
    tokenizer.add_special_tokens({"mask_token": "<|hidden|>"})
    assert chosen(tokenizer) == ("<|hidden|>", OWN)


def content(text: str) -> list[int]:
    return chatml().encode(text, add_special_tokens=False, split_special_tokens=True)


MASK = choose_mask_token(chatml())


def test_documents_without_the_mask_token_pass():
    refuse_mask_in_documents(MASK, [Document("a", "Ann keeps [some] bees."), Document("b", "4", "2 + 2?")], content)


@pytest.mark.parametrize(
    "document", [Document("x", "An empty list is []"), Document("x", "four", "What is len([])?"), Document("x", "[]")], ids=str
)
def test_a_document_that_holds_the_mask_token_is_named(document):
    message = r"^document 'x': its text holds the mask token '\[\]'; name another with --mask_token$"
    with pytest.raises(InputError, match=message):
        refuse_mask_in_documents(MASK, [Document("a", "fine"), document], content)


def test_the_name_of_a_special_mask_token_in_a_text_is_refused_too():
    mask = choose_mask_token(llama3())  # content splits it to pieces, but whoever reads the prompt could not tell
    with pytest.raises(InputError, match=r"^document 'x': "):
        refuse_mask_in_documents(mask, [Document("x", f"a {mask.token} b")], content)
