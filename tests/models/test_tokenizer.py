import collections
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import text_models
import tokenizers

from mrl_jax.errors import DataError, UsageError
from mrl_jax.models.text import tokenizer as tokenization
from mrl_jax.models.text.tokenizer import LENGTHS, Tokenizer, pad, padded_length

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "s", "##at", "Cat", "é")


def vocab_folder(path, **config):
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def ids(tokenizer, text, max_length=20):
    return tokenizer.encode([text], max_length)[0].tolist()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [2, 5, 6, 7, 8, 1, 3]),
        ({"do_lower_case": True}, [2, 5, 6, 7, 8, 1, 3]),
        ({"do_lower_case": False}, [2, 1, 9, 7, 8, 10, 3]),
        ({"do_lower_case": True, "strip_accents": False}, [2, 5, 6, 7, 8, 10, 3]),
    ],
)
def test_a_vocabulary_is_read_as_its_config_says(tmp_path, config, expected):
    """Letters made small lose their accents, unless it is said otherwise."""
    tokenizer = Tokenizer.load(vocab_folder(tmp_path, **config))
    assert ids(tokenizer, "The Cat sat é") == expected
    found = Tokenizer.load(tmp_path / "vocab.txt").encode(["The Cat sat é", "cat"], 20)
    assert [x.dtype for x in found] == [np.int32, np.int32]
    assert found[0].tolist() == expected
    assert found[1].tolist() == [2, 6, 3]


def test_lower_case_can_be_forced_and_config_overrides_tokenizer_json(tmp_path):
    cased = Tokenizer.load(vocab_folder(tmp_path, do_lower_case=False))
    cased.save(tmp_path, 16)
    assert ids(Tokenizer.load(tmp_path), "Cat") == [2, 9, 3]
    assert ids(Tokenizer.load(tmp_path, lowercase=True), "Cat") == [2, 6, 3]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert ids(Tokenizer.load(tmp_path), "Cat") == [2, 6, 3]


def test_what_is_saved_reads_back_the_same_and_carries_the_limit(tmp_path):
    tokenizer = text_models.tokenizer()
    tokenizer.save(tmp_path, 11)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = [*text_models.SENTENCES, "", "zebra!", "the cat " * 30]
    for a, b in zip(tokenizer.encode(texts, 25), again.encode(texts, 25), strict=True):
        np.testing.assert_array_equal(a, b)
    # The limit is for other readers: our own is what is asked for.
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 11
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 11
    assert config["mask_token"] == "[MASK]"
    tokenizer.save(tmp_path, None)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None


def test_a_long_text_loses_its_end_and_keeps_its_marks():
    tokenizer = text_models.tokenizer()
    whole = ids(tokenizer, "the old cat sleeps near a tree", 99)
    assert len(whole) > 8
    for length in range(3, len(whole) + 1):
        found = ids(tokenizer, "the old cat sleeps near a tree", length)
        assert found == [*whole[: length - 1], whole[-1]]
    assert ids(tokenizer, "") == [whole[0], whole[-1]]
    bare = text_models.tokenizer(marks=False)
    assert ids(bare, "the old cat sleeps near a tree", 4) == whole[1:5]
    assert ids(bare, "") == []
    with pytest.raises(UsageError, match="more than the 2 special tokens around a text, got 2"):
        tokenizer.encode(["the"], 2)


def test_training_makes_a_vocabulary_of_the_texts():
    tokenizer = Tokenizer.train(iter(text_models.SENTENCES), 60)
    assert tokenizer.vocab_size == 60
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, 4)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    unknown = 1
    assert unknown not in ids(tokenizer, "THE GUITAR")
    assert unknown in ids(tokenizer, "the ω")
    cased = Tokenizer.train(text_models.SENTENCES, 60, lowercase=False)
    assert unknown in ids(cased, "THE")
    with pytest.raises(UsageError, match="more than 5 tokens: 5"):
        Tokenizer.train(["a"], 5)


NASTY = {
    "special tokens": (["a man rides", "the [MASK] of zorro", "two dogs [SEP] [CLS] [UNK]"], 200),
    "more letters than are kept": (
        [" ".join(chr(0x1200 + (i * i + j) % 300) * 3 for j in range(9)) for i in range(200)],
        400,
    ),
    "letters as rare as each other": (["".join(map(chr, range(0x4E00, 0x4E00 + 1500)))], 3000),
    "pieces as rare as each other": (["abcd dcba bcda cdab acbd"], 30),
}
TRAINING = """
import hashlib, json, sys
from mrl_jax.models.text.tokenizer import Tokenizer
for texts, size in json.load(sys.stdin):
    print(hashlib.sha256(Tokenizer.train(texts, size).raw.to_str().encode()).hexdigest())
"""


def test_every_process_makes_the_same_vocabulary():
    made = set()
    for seed, threads in (("0", "true"), ("1", "false")):
        environment = {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads}
        done = subprocess.run(
            [sys.executable, "-c", TRAINING],
            input=json.dumps(list(NASTY.values())),
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | environment,
        )
        made.add(done.stdout)
    here = [Tokenizer.train(texts, size).raw.to_str() for texts, size in NASTY.values()]
    made.add("".join(f"{hashlib.sha256(text.encode()).hexdigest()}\n" for text in here))
    assert len(made) == 1


def test_what_is_not_kept_is_unknown_and_special_tokens_are_words_to_learn_from():
    texts, size = NASTY["more letters than are kept"]
    vocabulary = Tokenizer.train(texts, size).raw.get_vocab()
    counted = collections.Counter("".join(texts).replace(" ", ""))
    kept = sorted(sorted(counted, key=lambda c: (-counted[c], c))[: (size - 5) // 2])
    assert sorted(vocabulary, key=vocabulary.get)[5:][: len(kept)] == kept
    assert set("".join(vocabulary)) - set("[PAD][UNK][CLS][SEP][MASK]##") == set(kept)
    # In small letters, as a text of the same letters without a meaning.
    for twin in ("the [MASK] of zorro", "the [mask] of zorro"):
        vocabulary = Tokenizer.train([twin] * 3, 100).raw.get_vocab()
        assert "mask" in vocabulary
        assert not any(word != "[MASK]" and "M" in word for word in vocabulary)


def test_padding_goes_to_few_lengths():
    assert [padded_length(n, 10_000) for n in (0, 1, 8, 9, 512, 513, 700)] == [
        8, 8, 8, 16, 512, 640, 768,
    ]  # fmt: skip
    assert padded_length(20, 21) == 21
    assert set(LENGTHS) == {padded_length(n, 512) for n in range(1, 513)}
    tokens_bt, lengths_b = pad([np.array([5, 6, 7]), np.array([], int), np.array([8])], 4, 5)
    assert tokens_bt.dtype == lengths_b.dtype == np.int32
    expected = [[5, 6, 7, 0], [0, 0, 0, 0], [8, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert tokens_bt.tolist() == expected
    assert lengths_b.tolist() == [3, 0, 1, 0, 0]
    assert pad([], 3, 2)[0].tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        ("abc", UsageError, "must be a list of strings, got one string"),
        (["a", 3], UsageError, r"must be strings, text 1 is 3 \(int\)"),
        (["a", None], UsageError, r"must be strings, text 1 is None \(NoneType\)"),
        (["a", "b", float("nan")], UsageError, r"text 2 is nan \(float\)"),
        (np.array(["a", "b"], "S1"), UsageError, "text 0 is .*bytes"),
        (b"ab", UsageError, r"text 0 is 97 \(int\)"),
        (np.zeros((2, 40)), UsageError, "text 0 is array"),
        (np.array("a"), UsageError, "must be a list of strings, got array"),
        (None, UsageError, r"must be a list of strings, got None \(NoneType\)"),
        (7, UsageError, r"must be a list of strings, got 7 \(int\)"),
        ({"a": "b"}, UsageError, "got a dict: pass one column of a table, or the values"),
        (["a", "b\ud800"], DataError, "text 1 is not valid Unicode"),
    ],
)
def test_what_is_no_text_is_refused(texts, kind, message):
    with pytest.raises(kind, match=message):
        text_models.tokenizer().encode(texts, 9)


def test_texts_may_come_as_anything_that_gives_them_one_by_one():
    texts = ["a man", "the woman", "two dogs"]
    tokenizer = text_models.tokenizer()
    exact = [ids_t.tolist() for ids_t in tokenizer.encode(texts, 9)]
    for given in (
        tuple(texts),
        np.array(texts),
        np.array(texts, object),
        collections.deque(texts),
        (text for text in texts),
        map(str, texts),
        dict.fromkeys(texts),
    ):
        given = given.keys() if isinstance(given, dict) else given
        assert [ids_t.tolist() for ids_t in tokenizer.encode(given, 9)] == exact
    assert tokenizer.encode({"a man"}, 9)[0].tolist() == exact[0]
    assert tokenizer.encode(iter(()), 9) == []

    def broken():
        yield "a man"
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        tokenizer.encode(broken(), 9)


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no tokenizer: legal is tokenizer.json or vocab.txt"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UsageError, match=r"tokenizer .*/tokenizer.json not found"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab.txt: .* lacks \[UNK\], \[CLS\], \[SEP\]"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer \("):
        Tokenizer.load(tmp_path)
    vocab_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match=r"tokenizer_config.json: not valid JSON"):
        Tokenizer.load(tmp_path / "vocab.txt")


def test_a_tokenizer_without_a_mask_says_so(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(UsageError, match=r"no mask_token: legal is \[MASK\] or <mask>"):
        _ = Tokenizer.load(tmp_path).mask_id


@pytest.mark.parametrize("cut", ["right", "left"])
@pytest.mark.parametrize("marks", [True, False])
def test_long_texts_are_read_in_pieces_and_give_the_same_tokens(monkeypatch, cut, marks):
    random = np.random.default_rng(0)
    words = ["a", "bc", "Abc", "b-c", "\u4e2d\u6587", "x" * 150, "\n", "  ", "e\u0301", "[SEP]", ""]
    texts = [" ".join(random.choice(words, 400)) for _ in range(5)] + [" " * 900, "x" * 900]
    made = Tokenizer.train(["a bc abc b - c \u4e2d"] * 3, 40)
    tokenizer = Tokenizer(made.raw, marks=marks, cut=cut)
    lengths = (3, 40, 333, 2**30)
    whole = [tokenizer.encode(texts, length) for length in lengths]
    monkeypatch.setattr(tokenization, "PIECE", 64)
    monkeypatch.setattr(tokenization, "LONGEST_WORD", 1000)
    assert all(len(tokenization.pieces_of(text)) > 3 for text in texts[:5])
    for length, expected in zip(lengths, whole, strict=True):
        for ids_t, expected_t in zip(tokenizer.encode(texts, length), expected, strict=True):
            np.testing.assert_array_equal(ids_t, expected_t)
    again = Tokenizer.train(["a bc abc b - c \u4e2d"] * 3, 40)
    assert again.content == made.content


def test_a_tokenizer_that_sees_beyond_spaces_reads_long_texts_whole(monkeypatch):
    tokenizer = Tokenizer.train(["a b c"], 20, marks=False)
    tokenizer.raw.normalizer = tokenizers.normalizers.Prepend("a")
    expected_t = tokenizer.encode(["b c " * 200], 2**30)[0]
    monkeypatch.setattr(tokenization, "PIECE", 64)
    np.testing.assert_array_equal(tokenizer.encode(["b c " * 200], 2**30)[0], expected_t)


def test_only_what_can_matter_of_a_long_text_is_tokenised():
    class Counted:
        read = 0

        def __init__(self, raw):
            self.raw = raw

        def __getattr__(self, name):
            return getattr(self.raw, name)

        def encode(self, text, **options):
            Counted.read += len(text)
            return self.raw.encode(text, **options)

        def encode_batch_fast(self, texts, **options):
            Counted.read += sum(map(len, texts))
            return self.raw.encode_batch_fast(texts, **options)

    tokenizer = Tokenizer.train(["a b c"], 20)
    tokenizer.raw = Counted(tokenizer.raw)
    assert len(tokenizer.encode(["a b c " * 10**5], 128)[0]) == 128
    assert Counted.read < 4 * tokenization.PIECE


def test_pieces_are_the_text():
    for text in ("", "a", "a b" * 30_000, "a" * 300_000, "a " * 20_000 + "b" * 300_000 + " c"):
        pieces = tokenization.pieces_of(text)
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= tokenization.LONGEST_WORD
