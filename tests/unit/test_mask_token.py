"""Which token stands for a hidden one: the order of preference, what is passed over, and what is refused."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demask.chat_format import RECOVER_ANSWER, RECOVER_PASSAGE, RECOVERED
from demask.models.mask_token import MaskSearch, MaskToken, mask_candidates, mask_id, record_mask
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
    mask = mask_candidates(tokenizer, name)[0]
    assert tokenizer.convert_tokens_to_ids(mask.token) == mask.id
    return mask.token, mask.reason


OWN, RESERVED = "the tokenizer's own mask token", "an unused reserved token of the tokenizer"
RARE, NAMED = "a rare token: the tokenizer reserves none", "named by the user"
ADDED = "an added token that nothing else uses"
LAST = "the last ordinary token of the vocabulary that the documents do not hold"


def test_each_familys_choice():
    assert chosen(llama3()) == ("<|reserved_special_token_0|>", RESERVED)
    assert chosen(chatml()) == ("[]", RARE)
    assert chosen(gemma()) == ("[]", RARE)
    # A tokenizer that writes a word boundary before every text has this one with the boundary.
    assert mistral().convert_ids_to_tokens(mask_candidates(mistral())[0].id) == "▁[]"


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


def test_a_rare_one_comes_before_an_added_one():
    assert chosen(words("[]", special=("<|fim_prefix|>", "<repo_name>"))) == ("[]", RARE)


def test_of_added_tokens_the_last_is_taken_that_has_no_part_in_a_conversation():
    """SmolLM2's: neither those of its template nor those that other templates write, such as a role's."""
    names = ("<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<jupyter_code>", "<empty_output>", "<tool_call>", "<|user|>")
    assert chosen(words("a", special=names)) == ("<empty_output>", ADDED)
    template = "{% for m in messages %}<empty_output>{{ m.content }}{% endfor %}"
    assert chosen(words("a", special=names, template=template)) == ("<jupyter_code>", ADDED)


def test_a_reserved_token_with_a_role_is_passed_over():
    tokenizer = words("a", special=("<unused0>", "<unused1>"), pad_token="<unused0>")
    assert chosen(tokenizer) == ("<unused1>", RESERVED)


def test_a_reserved_token_in_the_template_is_passed_over():
    template = "{% for m in messages %}<unused0>{{ m.content }}<unused1>{% endfor %}"
    tokenizer = words("a", special=("<unused0>", "<unused1>", "<unused2>"), template=template)
    assert chosen(tokenizer) == ("<unused2>", RESERVED)


def test_of_several_reserved_ones_the_lowest_id_is_taken():
    assert mask_candidates(words("a", special=("<unused5>", "<unused2>")))[0] == MaskToken("<unused5>", 2, RESERVED)


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
        mask_candidates(llama3(), name)


def test_a_name_outside_the_vocabulary_is_refused_though_it_is_one_token():
    with pytest.raises(InputError, match=r"^mask_token: 'zyx' is not in this tokenizer's vocabulary$"):
        mask_candidates(words("a"), "zyx")


def test_a_tokenizer_that_offers_none_asks_for_a_name():
    with pytest.raises(InputError, match=r"^mask_token: this tokenizer has no token that could stand for a masked one; name one with"):
        mask_candidates(words("the", "passage"))
    assert chosen(words("a", "[", "]")) == ("]", LAST)


def test_a_mask_token_set_by_the_user_of_the_library_counts_as_its_own():
    tokenizer = copy.deepcopy(base())
    tokenizer.add_special_tokens({"mask_token": "<|hidden|>"})
    assert chosen(tokenizer) == ("<|hidden|>", OWN)


# -- ordinary tokens -------------------------------------------------------------------------------------------------------------------


def test_of_ordinary_tokens_the_last_is_taken_that_is_one_printable_text():
    """Independently: pieces in ASCII, which byte-level BPE writes as they are; a space and half a character are other letters in it."""
    tokenizer = base()
    vocabulary = tokenizer.get_vocab()
    ordinary = sorted((i, piece) for piece, i in vocabulary.items() if i not in tokenizer.added_tokens_decoder)
    masks = mask_candidates(tokenizer)
    assert masks[0].token == "[]"
    lasts = [m for m in masks if m.reason == LAST]
    plain = [(i, piece) for i, piece in ordinary if piece.isascii() and piece not in ("[]",)]
    assert [(m.id, m.token) for m in lasts] == [(i, piece) for i, piece in reversed(plain) if is_apart(piece)][: len(lasts)]
    assert len(masks) == 32


def is_apart(piece: str) -> bool:
    return not any(piece in text for text in (RECOVER_PASSAGE, RECOVER_ANSWER, RECOVERED))


def test_byte_tokens_are_no_candidates():
    for tokenizer in (gemma(), mistral()):
        pieces = [tokenizer.convert_ids_to_tokens(mask.id) for mask in mask_candidates(tokenizer)]
        assert not [piece for piece in pieces if piece.startswith("<0x")]
        assert len(pieces) == 32


def test_no_candidate_stands_in_what_is_around_the_documents():
    tokenizer = words("pink", "green", "blue", template="{{ messages }} blue")
    assert [m.token for m in mask_candidates(tokenizer)] == ["green", "pink"]
    assert [m.token for m in mask_candidates(tokenizer, around=["Return the green ones.", None])] == ["pink"]


# -- documents -------------------------------------------------------------------------------------------------------------------------


def content(text: str) -> list[int]:
    return chatml().encode(text, add_special_tokens=False, split_special_tokens=True)


def left(tokenizer, masks: list[MaskToken], *documents: Document, encode=content) -> list[str]:
    search = MaskSearch(tokenizer, masks)
    search.read(documents, encode)
    return [mask.token for mask in search.left]


def test_documents_without_the_mask_token_pass():
    documents = [Document("a", "Ann keeps [some] bees."), Document("b", "4", "2 + 2?")]
    assert left(chatml(), mask_candidates(chatml(), "[]"), *documents) == ["[]"]


@pytest.mark.parametrize(
    "document", [Document("x", "An empty list is []"), Document("x", "four", "What is len([])?"), Document("x", "[]")], ids=str
)
def test_a_document_that_holds_the_named_token_is_named(document):
    message = r"^document 'x': its text holds the mask token '\[\]'; name another with --mask_token$"
    with pytest.raises(InputError, match=message):
        left(chatml(), mask_candidates(chatml(), "[]"), Document("a", "fine"), document)
    assert left(chatml(), mask_candidates(chatml()), document)[0] != "[]"


def test_the_name_of_a_special_token_in_a_text_counts_too():
    """`content` cuts it to pieces, but whoever reads the prompt could not tell."""
    masks = mask_candidates(llama3())
    documents = [Document("x", f"a {masks[0].token} b"), Document("y", "c", f"a {masks[2].token} b")]
    assert [token[-4:] for token in left(llama3(), masks[:5], *documents)] == ["_1|>", "_3|>", "_4|>"]


def test_an_ordinary_token_counts_as_a_part_of_a_word_too():
    tokenizer = words("pink", "green")
    masks = mask_candidates(tokenizer)
    assert [m.token for m in masks] == ["green", "pink"]
    assert left(tokenizer, masks, Document("x", "evergreens"), encode=lambda text: [0]) == ["pink"]


def test_of_documents_that_hold_all_candidates_the_last_token_is_taken_whose_id_they_do_not_hold():
    """The words are parts of others: only "pink" stands there itself."""
    tokenizer = words("pink", "green", "blue")
    search = MaskSearch(tokenizer, mask_candidates(tokenizer))
    search.read([Document("x", "bluest evergreens"), Document("y", "pink")], lambda text: [1] if text == "pink" else [0])
    assert (search.mask.token, search.mask.id) == ("blue", 3)
    assert search.mask.reason == "the last ordinary token of the vocabulary whose id the documents do not hold"
    search.read([Document("z", "blue green")], lambda text: [2, 3])
    with pytest.raises(InputError, match=r"^documents: hold every token that could stand for a masked one; name one with --mask_token$"):
        _ = search.mask


# -- the record ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [chatml, llama3, gemma, mistral, base])
def test_what_is_recorded_is_taken_again_after_saving_and_loading_twice(make, tmp_path):
    tokenizer = make()
    mask = mask_candidates(tokenizer)[-1]
    before = tokenizer.encode(f"Ann keeps {mask.token} bees.", split_special_tokens=True), tokenizer.all_special_ids
    record_mask(tokenizer, mask)
    for _ in range(2):
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        again = mask_candidates(tokenizer)[0]
        assert (again.token, again.id, again.reason) == (mask.token, mask.id, "recorded by an earlier run")
        assert mask_id(tokenizer) == mask.id
        assert (tokenizer.encode(f"Ann keeps {mask.token} bees.", split_special_tokens=True), tokenizer.all_special_ids) == before


def test_a_record_of_another_vocabulary_is_passed_over():
    for token in ("no such token", 7, None):
        tokenizer = llama3()
        tokenizer.init_kwargs["demask_mask"] = token
        assert chosen(tokenizer) == ("<|reserved_special_token_0|>", RESERVED)
        assert mask_id(tokenizer) is None


def test_the_record_comes_before_the_tokenizers_own():
    tokenizer = words("zyx", mask_token="<mask>")
    assert mask_id(tokenizer) == tokenizer.mask_token_id
    record_mask(tokenizer, mask_candidates(tokenizer, "zyx")[0])
    assert [mask.token for mask in mask_candidates(tokenizer)][:2] == ["zyx", "<mask>"]
    assert mask_id(tokenizer) == tokenizer.convert_tokens_to_ids("zyx")
