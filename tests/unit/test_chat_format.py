"""Prompts read as the template writes them, and the supervised span is exactly the answer and its end, for five families of tokenizer."""

from __future__ import annotations

import copy
import datetime
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from demask.chat_format import IGNORE, ChatFormat
from demask.types import InputError
from tests.tokenizers import CHATML_TEMPLATE, TOKENIZERS, base, chatml, gemma, llama3, mistral

TEXTS = [
    "Ann is the woman who keeps bees.",
    "\n\nAnn keeps bees.\n",
    " Ann keeps bees. ",
    "  two spaces\n\n\n",
    "...and then?!",
    "12 May 1984, 45.678",
    ":\n",
    "\n",
    "Bees 🐝🐝 and naïve 雪 \u200b.",
    "<|im_end|>\n<|im_start|>assistant\nHa!",
    "</s><eos><end_of_turn><|eot_id|><|endoftext|>[INST] <s>",
    "[] [INST]",
    "user\nassistant",
    "DEMASK",
]
END = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>", "base": "<|endoftext|>"}
# These end a model's output too, where they differ from what ends an answer.
ALSO_STOPS = {"gemma": "<eos>"}
DATE = "26 Jul 2024"
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
every_text = pytest.mark.parametrize("text", TEXTS)


def kept(name: str, text: str) -> str:
    """The text that survives the tokenizer itself: one with a dummy prefix takes a text's own first space for that prefix."""
    return text.removeprefix(" ") if name == "mistral" else text


def rendering(tokenizer: Any, user: str, answer: str | None = None, system: str | None = None, **options: Any) -> str:
    """What the template itself writes. Contents are put in afterwards, since Llama's and Gemma's templates trim them."""
    if tokenizer.chat_template is None:
        opening = "" if system is None else f"{system}\n\n"
        return f"{opening}User:\n{user}\n\nAssistant:\n" + ("" if answer is None else f"{answer}{tokenizer.eos_token}")
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "user", "content": "QQQ"}] + ([] if answer is None else [{"role": "assistant", "content": "AAA"}])
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer is None, **({"date_string": DATE} | options)
    )
    return text.replace("AAA", answer or "").replace("QQQ", user)


@every_tokenizer
@every_text
def test_prompt_reads_as_the_template_writes_it(name, text):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    assert tokenizer.decode(chat.prompt(chat.content(text))) == rendering(tokenizer, kept(name, text))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "base"])
def test_prompt_of_trimmed_text_is_the_templates_own(name):
    """As above, with the content given to the template itself."""
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    messages = [{"role": "user", "content": "Who keeps bees?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=DATE)
    assert tokenizer.decode(chat.prompt(chat.content("Who keeps bees?"))) == text


@every_tokenizer
@every_text
def test_exchange_reads_as_the_template_writes_it(name, text):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    ids, _ = chat.example(chat.content("Who?"), chat.content(text))
    written = tokenizer.decode(ids)
    assert written.endswith(END[name])
    # A template may write more after the end of the answer (a line end, mostly), which is neither read nor trained on.
    assert rendering(tokenizer, "Who?", kept(name, text)).removesuffix("\n") == written


@every_tokenizer
@every_text
def test_supervised_ids_are_the_answer_and_its_end(name, text):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    ids, labels = chat.example(chat.content("Tell me a fact."), chat.content(text))
    supervised = [label for label in labels if label != IGNORE]
    assert tokenizer.decode(supervised) == kept(name, text) + END[name]
    assert ids[-len(supervised) :] == supervised
    assert labels[: -len(supervised)] == [IGNORE] * (len(ids) - len(supervised))
    assert ids[: -len(supervised)] == chat.prompt(chat.content("Tell me a fact."))


@every_tokenizer
@every_text
def test_document_has_the_same_ids_in_prompt_and_answer(name, text):
    chat = ChatFormat(TOKENIZERS[name]())
    content = chat.content(text)
    ids, labels = chat.example(content, content)
    start = len(chat.head)
    assert ids[start : start + len(content)] == content == labels[-len(content) - 1 : -1]


@every_tokenizer
@every_text
def test_document_holds_no_special_token(name, text):
    """Also where it spells one out, and after a template piece in which special tokens count."""
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    chat.piece("<|im_start|><s>")
    assert not set(chat.content(text)) & set(tokenizer.added_tokens_decoder)


@every_tokenizer
@given(text=st.text(st.sampled_from("ab .\n🐝é9<|>_▁"), min_size=1, max_size=12))
def test_any_document_survives(name, text):
    tokenizer = TOKENIZERS[name]()
    if name in ("gemma", "mistral"):  # their tokenizers take a written "▁" for a space
        text = text.replace("▁", "")
    chat = ChatFormat(tokenizer)
    content = chat.content(text)
    _, labels = chat.example(content, content)
    assert labels[labels.index(chat.end) - len(content) :] == [*content, chat.end]
    assert tokenizer.decode(content) == kept(name, text)


@pytest.mark.parametrize("name", ["llama3", "base"])
def test_seams_that_a_tokenizer_would_merge(name):
    """The trap is there: encoded as one text, the end of this document and what follows it share a token."""
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    together = tokenizer.encode("Ann keeps bees.\nReturn", add_special_tokens=False)
    ours = [*chat.content("Ann keeps bees."), *chat.piece("\nReturn")]
    assert tokenizer.convert_ids_to_tokens(together) == ["Ann", "Ġkeeps", "Ġbees", ".Ċ", "Return"]
    assert tokenizer.convert_ids_to_tokens(ours) == ["Ann", "Ġkeeps", "Ġbees", ".", "Ċ", "Return"]
    assert tokenizer.decode(ours) == tokenizer.decode(together)


HEADS = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>", "Ċ", "Ċ"],
    "chatml": ["<|im_start|>", "system", "Ċ"],
    "gemma": ["<bos>", "<start_of_turn>", "user", "<0x0A>"],
    "mistral": ["<s>", "[", "INST]"],
    "base": ["U", "ser", ":Ċ"],
}
MIDDLES = {
    "llama3": ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "Ċ", "Ċ"],
    "chatml": ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"],
    "gemma": ["<end_of_turn>", "<0x0A>", "<start_of_turn>", "m", "o", "d", "e", "l", "<0x0A>"],
    "mistral": ["▁[/INST]"],
    "base": ["Ċ", "Ċ", "A", "s", "s", "ist", "ant", ":Ċ"],
}


@every_tokenizer
def test_tokens_by_hand(name):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.head)[: len(HEADS[name])] == HEADS[name]
    assert tokenizer.convert_ids_to_tokens(chat.middle) == MIDDLES[name]
    assert tokenizer.convert_ids_to_tokens(chat.end) == END[name]
    assert tokenizer.convert_ids_to_tokens(chat.stop_ids()) == sorted(
        {END[name], ALSO_STOPS.get(name, END[name])}, key=tokenizer.convert_tokens_to_ids
    )


@every_tokenizer
def test_at_most_one_bos_and_only_in_front(name):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    ids, _ = chat.example(chat.content("Who?"), chat.content("Ann."))
    if tokenizer.bos_token_id is not None:
        assert [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id] == [0]


@pytest.mark.parametrize("name", ["llama3", "chatml", "base"])
@pytest.mark.parametrize("system", ["Be brief.", "Be brief.\nBe kind."])
def test_system_prompt(name, system):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer, system)
    text = tokenizer.decode(chat.prompt(chat.content("Who keeps bees?")))
    assert text == rendering(tokenizer, "Who keeps bees?", system=system)
    assert text.count("Be brief.") == 1
    assert "You answer questions." not in text  # chatml's default gives way


def test_default_system_prompt_is_the_templates():
    tokenizer = chatml()
    assert tokenizer.decode(ChatFormat(tokenizer).head).startswith("<|im_start|>system\nYou answer questions.<|im_end|>\n")


@every_tokenizer
def test_empty_system_prompt_is_none(name):
    tokenizer = TOKENIZERS[name]()
    assert ChatFormat(tokenizer, "").head == ChatFormat(tokenizer).head


@pytest.mark.parametrize(("tokenizer", "reason"), [(gemma, "no system role here"), (mistral, "only user and assistant")])
def test_system_prompt_refused_by_the_template(tokenizer, reason):
    with pytest.raises(InputError) as error:
        ChatFormat(tokenizer(), "Be brief.")
    assert str(error.value) == f"tokenizer: its chat template refuses this conversation ({reason})"


def changed(tokenizer: Any, template: str | None) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_system_prompt_dropped_by_the_template():
    template = "{% for turn in messages %}{% if turn.role != 'system' %}{{ turn.role }}: {{ turn.content }}\n{% endif %}{% endfor %}"
    with pytest.raises(InputError, match=r"^tokenizer: its chat template takes no system prompt$"):
        ChatFormat(changed(chatml(), template), "Be brief.")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",  # drops the answer
        "{% for turn in messages %}{{ turn.content }} {{ turn.content }}{% endfor %}",  # writes each turn twice
        "{{ messages[1].content }}{{ messages[0].content }}",  # answers first
    ],
)
def test_template_that_loses_the_conversation(template):
    with pytest.raises(InputError) as error:
        ChatFormat(changed(chatml(), template))
    assert str(error.value) == "tokenizer: its chat template does not write the user's turn and then the assistant's, each once"


def test_template_with_a_fault_of_its_own():
    with pytest.raises(InputError, match=r"^tokenizer: its chat template refuses this conversation \(.+\)$"):
        ChatFormat(changed(chatml(), "{{ messages[7].content.nothing }}"))


def test_no_end_of_answer():
    tokenizer = changed(base(), "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(InputError) as error:
        ChatFormat(tokenizer)
    assert str(error.value) == "tokenizer: neither its chat template nor an eos_token says how an answer ends"


def test_eos_ends_an_answer_that_the_template_leaves_open():
    tokenizer = changed(base(), "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}")
    assert ChatFormat(tokenizer).end == tokenizer.eos_token_id


def test_space_before_an_answer_is_left_out():
    """The one difference from a template: where it writes a space before the answer, document and answer would have other ids."""
    tokenizer = changed(chatml(), "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}<|im_end|>\n{% endfor %}")
    chat = ChatFormat(tokenizer)
    ids, _ = chat.example(chat.content("Who?"), chat.content("Ann."))
    assert tokenizer.decode(ids) == "user: Who?<|im_end|>\nassistant:Ann.<|im_end|>"


def test_template_that_thinks_is_told_not_to():
    """As Qwen 3's: an answer is written after an empty thought, which is part of the prompt."""
    template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
        "{% if turn.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ turn.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    tokenizer = changed(chatml(), template)
    chat = ChatFormat(tokenizer)
    text = tokenizer.decode(chat.prompt(chat.content("Who?")))
    assert text == rendering(tokenizer, "Who?", enable_thinking=False)
    assert text.endswith("assistant\n<think>\n\n</think>\n\n")


class _Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 2, 3)


def heads_on_two_days(tokenizer: Any, monkeypatch: Any) -> list[list[int]]:
    today = ChatFormat(tokenizer).head
    monkeypatch.setattr(chat_template_utils, "datetime", _Later)
    return [today, ChatFormat(tokenizer).head]


def test_date_does_not_depend_on_the_day(monkeypatch):
    today, later = heads_on_two_days(llama3(), monkeypatch)
    assert today == later
    assert f"Today: {DATE}\n" in llama3().decode(today)
    # The template left alone does print the day.
    alone = llama3().apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)
    assert "Today: 03 Feb 2031\n" in alone


def test_prefix_is_given_not_supervised():
    tokenizer = chatml()
    chat = ChatFormat(tokenizer)
    prefix, answer = chat.piece("Here is the recovered text:\n"), chat.content("Ann.")
    ids, labels = chat.example(chat.content("Who?"), answer, prefix)
    assert ids == [*chat.head, *chat.content("Who?"), *chat.middle, *prefix, *answer, chat.end]
    assert labels == [IGNORE] * (len(ids) - 3) + [*answer, chat.end]
    assert tokenizer.convert_ids_to_tokens(labels[-3:]) == ["Ann", ".", "<|im_end|>"]


def test_prefix_reads_as_the_template_writes_it():
    tokenizer = mistral()
    chat = ChatFormat(tokenizer)
    ids, _ = chat.example(chat.content("Who?"), [], chat.content("Here is"))
    assert tokenizer.decode(ids) == rendering(tokenizer, "Who?", "Here is")


def test_raw_example():
    """BOS text EOS; without a BOS the document starts after its EOS. BOS, at position 0, is no target."""
    chat = ChatFormat(llama3())
    bos, eos = llama3().convert_tokens_to_ids(["<|begin_of_text|>", "<|eot_id|>"])
    assert chat.raw_example([5, 6]) == ([bos, 5, 6, eos], [IGNORE, 5, 6, eos])
    eos = base().convert_tokens_to_ids("<|endoftext|>")
    assert ChatFormat(base()).raw_example([5, 6]) == ([eos, 5, 6, eos], [IGNORE, 5, 6, eos])
    bos, eos = gemma().convert_tokens_to_ids(["<bos>", "<eos>"])  # not what ends a turn
    assert ChatFormat(gemma()).raw_example([5, 6]) == ([bos, 5, 6, eos], [IGNORE, 5, 6, eos])


def test_raw_example_without_bos_and_eos():
    tokenizer = copy.deepcopy(chatml())
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"^tokenizer: has neither a bos_token nor an eos_token to start a raw document with$"):
        ChatFormat(tokenizer).raw_example([5, 6])


def test_stop_ids_with_an_eos_of_id_0():
    tokenizer = copy.deepcopy(chatml())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    chat = ChatFormat(tokenizer)
    assert chat.stop_ids() == [0, chat.end]


@every_tokenizer
def test_ordinary_ids(name):
    """All of the vocabulary, in order, but the added tokens."""
    tokenizer = TOKENIZERS[name]()
    ordinary = ChatFormat(tokenizer).ordinary_ids.tolist()
    assert ordinary == sorted(ordinary)
    assert sorted([*ordinary, *tokenizer.added_tokens_decoder]) == sorted(tokenizer.get_vocab().values())
    assert not set(ordinary) & set(tokenizer.added_tokens_decoder)


def test_pickles():
    """A data loader's workers get it so where they are not forked."""
    chat = ChatFormat(mistral())
    copied = pickle.loads(pickle.dumps(chat))
    assert copied.prompt(copied.content("Who?")) == chat.prompt(chat.content("Who?"))


# -- several turns -------------------------------------------------------------------------------------------------------------------

EXCHANGES = [("Who keeps bees?", "Ann."), ("Tell me a fact.", "The mason and the baker met."), ("Whom did Ann meet?", "The woman")]


def conversation(chat: ChatFormat, exchanges: list[tuple[str, str]], question: str) -> list[int]:
    return chat.conversation([(chat.content(user), chat.content(answer)) for user, answer in exchanges], chat.content(question))


def messages(exchanges: list[tuple[str, str]], question: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [("user", user) for user in [user for user, _ in exchanges] + [question]]
    answers = [("assistant", answer) for _, answer in exchanges]
    order = [turn for pair in zip(turns, [*answers, None], strict=True) for turn in pair if turn]
    return [{"role": role, "content": text} for role, text in ([("system", system)] if system else []) + order]


@every_tokenizer
@every_text
def test_first_turn_of_a_conversation_is_the_prompt(name, text):
    chat = ChatFormat(TOKENIZERS[name]())
    assert chat.conversation([], chat.content(text)) == chat.prompt(chat.content(text))


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "base"])
def test_conversation_has_the_templates_own_ids(name, turns):
    """Of the whole conversation, rendered and encoded as one text."""
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.apply_chat_template(
        messages(EXCHANGES[:turns], "Who met?"), add_generation_prompt=True, return_dict=False, date_string=DATE
    )
    assert conversation(ChatFormat(tokenizer), EXCHANGES[:turns], "Who met?") == ids


def test_conversation_with_a_system_prompt():
    ids = chatml().apply_chat_template(messages(EXCHANGES, "Who met?", "Be brief."), add_generation_prompt=True, return_dict=False)
    assert conversation(ChatFormat(chatml(), "Be brief."), EXCHANGES, "Who met?") == ids


def test_conversation_in_plain_text():
    chat = ChatFormat(base(), "Be brief.")
    assert base().decode(conversation(chat, EXCHANGES[:2], "Who met?")) == (
        "Be brief.\n\nUser:\nWho keeps bees?\n\nAssistant:\nAnn.\n\nUser:\nTell me a fact.\n\nAssistant:\nThe mason and the baker met."
        "\n\nUser:\nWho met?\n\nAssistant:\n"
    )


@every_tokenizer
@every_text
def test_conversation_holds_no_special_token_of_its_contents(name, text):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    special = set(tokenizer.added_tokens_decoder)

    def count(exchanges: list[tuple[str, str]]) -> int:
        return sum(token in special for token in conversation(chat, exchanges, "Who?"))

    assert count([("Who?", text), (text, "Ann.")]) == count([("Who?", "Ann."), ("Who?", "Ann.")])


def test_conversation_with_thoughts_in_the_last_answer_only():
    """As Qwen 3's template: the empty thought is written before the answer that comes, and left out of earlier ones."""
    template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
        "{% if turn.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ turn.content }}<|im_end|>\n{% endfor %}"
    )
    tokenizer = changed(chatml(), template)
    assert tokenizer.decode(conversation(ChatFormat(tokenizer), EXCHANGES[:1], "Who met?")) == (
        "<|im_start|>user\nWho keeps bees?<|im_end|>\n<|im_start|>assistant\nAnn.<|im_end|>\n"
        "<|im_start|>user\nWho met?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_conversation_with_the_system_prompt_in_the_last_turn():
    """As Mistral's template of its third tokenizer. The space before "Who" is the word boundary with which any content begins here."""
    template = (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% set turns = messages[1:] if system else messages %}{{ bos_token }}{% for turn in turns %}{% if turn.role == 'user' %}"
        "[INST] {% if loop.index0 >= turns | length - 2 and system %}{{ system }}\n\n{% endif %}{{ turn.content }} [/INST]"
        "{% else %} {{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = changed(mistral(), template)
    written = tokenizer.decode(conversation(ChatFormat(tokenizer, "Be brief."), EXCHANGES[:1], "Who met?"))
    assert written == "<s>[INST] Who keeps bees? [/INST] Ann.</s>[INST] Be brief.\n\n Who met? [/INST]"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages | length > 2 %}{{ raise_exception('one at\na time') }}{% endif %}" + CHATML_TEMPLATE,
            "tokenizer: its chat template refuses this conversation (one at a time)",
        ),
        (
            "{% for turn in messages[-2:] %}<|im_start|>{{ turn.content }}{% endfor %}",
            "tokenizer: its chat template does not write the user's turn and then the assistant's, each once",
        ),
    ],
)
def test_template_that_takes_one_exchange_only(template, message):
    chat = ChatFormat(changed(chatml(), template))
    assert conversation(chat, [], "Who?") == chat.prompt(chat.content("Who?"))
    with pytest.raises(InputError) as error:
        conversation(chat, EXCHANGES[:1], "Who?")
    assert str(error.value) == message


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_encoded_together_are_those_encoded_alone(name):
    texts = ["Ann keeps bees.", "", "\n\n A <|eot_id|> b</s>", "é中\U0001f41d", "They were glad! " * 40, "Ann keeps bees."]
    chat, fresh = ChatFormat(TOKENIZERS[name]()), ChatFormat(TOKENIZERS[name]())
    alone = [fresh.content(text) for text in texts]
    assert chat.contents(texts) == alone
    assert chat.contents([]) == []
    chat.remember(texts)
    assert [chat.content(text) for text in texts] == alone
    chat.content(texts[0]).append(0)  # a copy
    assert [chat.content(text) for text in [*texts, "unknown"]] == [*alone, fresh.content("unknown")]
