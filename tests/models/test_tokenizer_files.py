"""Settings of tokenizer folders against the tokens that transformers 5.23 makes of them."""

import json

import pytest

from mrl_jax.errors import DataError, UsageError
from mrl_jax.models.text.tokenizer import Tokenizer

# fmt: off
VOCABULARY = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "läuft", "l", "##a", "##uft", "漢",
    "字", "##字", "M", "##n", "two", "dogs", "run", "an", "old", "cat", "eats", "sleeps",
)
# fmt: on
TEXT = "A Man läuft 漢字"
LONG = "a man sleeps two dogs run an old cat eats"
BERT = {"tokenizer_class": "BertTokenizer"}


@pytest.fixture
def folder(tmp_path):
    """A cased BERT tokenizer, in both of its forms."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"do_lower_case": false}')
    Tokenizer.load(tmp_path / "vocab.txt").save(tmp_path, 20)
    return tmp_path


def change(path, **values):
    """Sets keys of a JSON file, which may be new; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (content | values).items() if v is not None}))


def tokens(path, text, max_length=12):
    tokenizer = Tokenizer.load(path)
    return " ".join(
        tokenizer.raw.id_to_token(i) for i in tokenizer.encode([text], max_length)[0].tolist()
    )


CASED = "[CLS] [UNK] M ##a ##n läuft 漢 字 [SEP]"
LOWER = "[CLS] a man l ##a ##uft 漢 字 [SEP]"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The class that takes tokenizer.json as it is.
        ({}, CASED),
        ({"do_lower_case": True, "strip_accents": True, "tokenize_chinese_chars": False}, CASED),
        ({"tokenizer_class": "TokenizersBackend", "do_lower_case": True}, CASED),
        # Those that take their normaliser from the settings, and what these leave out.
        ({**BERT}, CASED),
        ({**BERT, "do_lower_case": None}, LOWER),
        ({"tokenizer_class": "DistilBertTokenizerFast", "do_lower_case": None}, LOWER),
        ({**BERT, "strip_accents": True}, CASED.replace("läuft", "l ##a ##uft")),
        (
            {**BERT, "do_lower_case": True, "strip_accents": False},
            LOWER.replace("l ##a ##uft", "läuft"),
        ),
        ({**BERT, "tokenize_chinese_chars": False}, CASED.replace("漢 字", "漢 ##字")),
    ],
)
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_letters_and_accents_are_what_the_class_makes_of_its_settings(
    folder, settings, expected, form
):
    change(folder / "tokenizer_config.json", **settings)
    if form == "vocab.txt":
        (folder / "tokenizer.json").unlink()
        if "Bert" not in settings.get("tokenizer_class", ""):
            return  # nothing says what such a class would make of a vocabulary
    assert tokens(folder, TEXT) == expected


def test_the_class_may_stand_in_the_models_config_or_follow_from_its_kind(folder):
    change(folder / "tokenizer_config.json", tokenizer_class=None, do_lower_case=None)
    assert tokens(folder, TEXT) == CASED  # no class: what is not stated is as in tokenizer.json
    change(folder / "config.json", model_type="bert")
    assert tokens(folder, TEXT) == LOWER
    change(folder / "config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert tokens(folder, TEXT) == CASED
    change(folder / "config.json", tokenizer_class="RobertaTokenizer")
    with pytest.raises(UsageError, match="RobertaTokenizer with a WordPiece model"):
        Tokenizer.load(folder)


def test_the_side_that_is_cut_off_is_kept_through_saving(folder, tmp_path):
    left = "[CLS] an old cat eats [SEP]"
    assert tokens(folder, LONG, 6) == "[CLS] a man sleeps two [SEP]"
    change(folder / "tokenizer_config.json", truncation_side="left")
    assert tokens(folder, LONG, 6) == left
    tokenizer = Tokenizer.load(folder)
    (tmp_path / "again").mkdir()
    for limit in (6, None):
        tokenizer.save(tmp_path / "again", limit)
        assert tokens(tmp_path / "again", LONG, 6) == left
        (tmp_path / "again" / "tokenizer_config.json").unlink()
        assert tokens(tmp_path / "again" / "tokenizer.json", LONG, 6) == left
    change(folder / "tokenizer_config.json", truncation_side="right")
    assert tokenizer.content != Tokenizer.load(folder).content


ITEM = {"content": "[ITEM]", "special": True, "normalized": False, "lstrip": False}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("added_tokens.json", {"[ITEM]": len(VOCABULARY)}),
        ("tokenizer_config.json", {"added_tokens_decoder": {len(VOCABULARY): ITEM}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["[ITEM]"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"item_token": "[ITEM]"}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["[ITEM]"]}),
    ],
)
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_tokens_that_were_added_are_one_token(folder, file, values, form):
    change(folder / file, **values)
    if form == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    for text in ("a [ITEM] man", "a[ITEM]man"):
        assert tokens(folder, text) == "[CLS] a [ITEM] man [SEP]"
    assert Tokenizer.load(folder).raw.token_to_id("[ITEM]") == len(VOCABULARY)


def test_a_token_that_was_added_to_an_uncased_vocabulary_is_found_in_any_case(folder):
    change(folder / "tokenizer_config.json", do_lower_case=True)
    change(folder / "added_tokens.json", **{"[ITEM]": len(VOCABULARY)})
    (folder / "tokenizer.json").unlink()
    ids_t = Tokenizer.load(folder).encode(["A [ITEM] man [item] a"], 12)[0]
    assert ids_t.tolist() == [2, 5, 24, 6, 24, 5, 3]


def test_a_word_that_is_called_special_is_split_off_and_keeps_its_id(folder):
    change(folder / "tokenizer_config.json", additional_special_tokens=["man"])
    assert tokens(folder, "a mana dogs") == "[CLS] a man a dogs [SEP]"
    assert Tokenizer.load(folder).special_ids == (0, 1, 2, 3, 4, 6)


def test_a_vocabulary_with_special_tokens_of_other_names(folder):
    (folder / "tokenizer.json").unlink()
    words = [{"[CLS]": "<cls>", "[SEP]": "<sep>"}.get(word, word) for word in VOCABULARY]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"vocab.txt: the vocabulary lacks \[CLS\], \[SEP\]"):
        Tokenizer.load(folder)
    named = {"cls_token": "<cls>", "sep_token": {"content": "<sep>"}}
    change(folder / "tokenizer_config.json", **BERT, **named)
    assert tokens(folder, "a man") == "<cls> a man <sep>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "RobertaTokenizer"}, "RobertaTokenizer with a WordPiece model, where"),
        ({"tokenizer_class": "XLMRobertaTokenizerFast"}, "XLMRobertaTokenizer with a WordPiece"),
        ({"tokenizer_class": "MPNetTokenizer", "cls_token": None}, "cls_token <s> and"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "'BertJapaneseTokenizer' is not supported"),
        ({**BERT, "cls_token": "man"}, r"cls_token man and sep_token \[SEP\], where"),
        ({**BERT, "unk_token": "[MASK]"}, r"unk_token \[MASK\], where its model has \[UNK\]"),
        ({"never_split": ["man"]}, r"never_split \['man'\] is not supported; remove it"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize False is not supported; legal: True"),
        ({"split_special_tokens": True}, "split_special_tokens True is not supported"),
        ({"padding_side": "left"}, "padding_side 'left' is not supported; legal: right"),
        ({"word_tokenizer_type": "mecab"}, "word_tokenizer_type 'mecab' is not supported"),
        ({"anything": [1] * 99}, r"anything \[1, 1.{,60} is not supported"),
        ({"truncation_side": "middle"}, "truncation_side 'middle'; legal: left, right"),
        ({"strip_accents": "yes"}, "strip_accents must be true or false, got 'yes'"),
        ({"added_tokens_decoder": {"3": ITEM}}, r"gives token '\[ITEM\]' the id 3"),
        ({"added_tokens_decoder": {"x": ITEM}}, "tokens that cannot be added"),
        ({"additional_special_tokens": [3]}, "additional_special_tokens must be a list of texts"),
        ({"additional_special_tokens": 3}, "additional_special_tokens must be a list of texts"),
        ({"extra_special_tokens": {"x": []}}, "extra_special_tokens must be a list of texts"),
        ({"pad_token": [1]}, r"pad_token must be a text, got \[1\]"),
        ({"cls_token": {"content": {}}}, "cls_token must be a text, got {'content': {}}"),
    ],
)
def test_what_is_not_heeded_is_refused(folder, settings, message):
    change(folder / "tokenizer_config.json", **settings)
    with pytest.raises((UsageError, DataError), match=message) as error:
        Tokenizer.load(folder)
    assert "\n" not in str(error.value)
    assert "tokenizer_config.json" in str(error.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("special_tokens_map.json", {"sep_token": 3}, "sep_token must be a text, got 3"),
        ("special_tokens_map.json", {"strip_accents": "x"}, "strip_accents must be true or false"),
        ("added_tokens.json", {"[ITEM]": [1]}, r"added_tokens.json: '\[ITEM\]': .* must be int"),
    ],
)
def test_files_beside_it_of_another_type_are_refused(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises((UsageError, DataError), match=message):
        Tokenizer.load(folder)
    change(folder / "config.json", tokenizer_class=None, model_type=["bert"])
    for other in ("special_tokens_map.json", "added_tokens.json"):
        (folder / other).unlink(missing_ok=True)
    assert tokens(folder, "a man") == "[CLS] a man [SEP]"


def test_settings_that_change_nothing_are_passed(folder):
    change(
        folder / "tokenizer_config.json",
        never_split=[],
        do_basic_tokenize=True,
        name_or_path="somewhere",
        padding_side="right",
        clean_up_tokenization_spaces=True,
        bos_token=None,
        split_special_tokens=False,
    )
    assert tokens(folder, TEXT) == CASED
    # A file that counts alone has no settings.
    change(folder / "tokenizer_config.json", never_split=["man"])
    Tokenizer.load(folder / "tokenizer.json", settings=False)
