"""Words, vocabulary and the two parts of a text."""

import math
from collections import Counter

import pytest
import torch

from gradtrace.errors import OptionError
from gradtrace.experiments.corpus import (
    Text,
    check_length,
    choose_vocabulary,
    default_text,
    make_corpus,
    read_text,
    split_words,
    unigram_perplexity,
)


def text_of(words):
    return Text("test", tuple(words), "")


def test_default_text_is_pydoc_topics_in_name_order():
    from pydoc_data.topics import topics

    text = default_text()
    assert text.words == tuple(" ".join(topics[name] for name in sorted(topics)).split())
    assert len(text.words) > 50_000
    assert default_text().sha256 == text.sha256


def test_line_ends_mean_nothing_in_running_text_and_end_a_sentence_in_ptb_format():
    assert split_words("a b\nc\n") == ["a", "b", "c"]
    assert split_words(" a <unk> b \n\n c \n") == ["a", "<unk>", "b", "<eos>", "c", "<eos>"]


def test_vocabulary_is_the_most_frequent_words_with_unk_first():
    words = ["b"] * 3 + ["a"] * 3 + ["c"] * 5 + ["d"] * 2 + ["once"]
    assert choose_vocabulary(tuple(words), 100) == ("<unk>", "c", "a", "b", "d")
    assert choose_vocabulary(tuple(words), 3) == ("<unk>", "c", "a")


def test_ptb_vocabulary_keeps_rare_words_because_the_text_has_its_own_unk():
    assert choose_vocabulary(("<unk>", "x", "<unk>", "y", "y"), 100) == ("<unk>", "y", "x")


def test_vocabulary_never_sees_the_held_out_part():
    corpus = make_corpus(text_of(["a", "b"] * 45 + ["new"] * 10), 100)
    assert corpus.vocabulary == ("<unk>", "a", "b")
    assert corpus.held_out.tolist() == [0] * 10
    assert corpus.unknown_share(corpus.held_out) == 1


def test_parts_are_contiguous_and_nothing_is_lost():
    words = [f"w{i % 50}" for i in range(1000)]
    corpus = make_corpus(text_of(words), 1000)
    both = torch.cat([corpus.training, corpus.held_out])
    assert [corpus.vocabulary[i] for i in both] == words
    assert (len(corpus.training), len(corpus.held_out)) == (900, 100)


def test_ten_thousand_words_and_unk():
    words = [f"w{i}" for i in range(12_000) for _ in range(2)]
    corpus = make_corpus(text_of(words), 10_000)
    assert len(corpus.vocabulary) == 10_000
    assert set(corpus.training.tolist()) == set(range(10_000))


def test_unigram_perplexity_from_its_definition():
    corpus = make_corpus(text_of(["a"] * 30 + ["b"] * 60 + ["a"] * 5 + ["b"] * 5), 100)
    counts = Counter({"a": 31, "b": 61, "<unk>": 1})
    p = {w: n / 93 for w, n in counts.items()}
    expected = math.exp(-(math.log(p["a"]) + math.log(p["b"])) / 2)
    assert unigram_perplexity(corpus) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"caf\xe9 au lait", "not UTF-8 text: byte 3"),
        (b"\x00\x01\x02", "null byte"),
    ],
)
def test_files_that_are_not_text(tmp_path, content, message):
    (tmp_path / "corpus").write_bytes(content)
    with pytest.raises(OptionError, match=message):
        read_text(tmp_path / "corpus")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(OptionError, match="No such file"):
        read_text(tmp_path / "nothing")
    with pytest.raises(OptionError, match="directory"):
        read_text(tmp_path)


def test_utf8_with_byte_order_mark(tmp_path):
    (tmp_path / "corpus").write_text("naïve 数学", encoding="utf-8-sig")
    assert read_text(tmp_path / "corpus").words == ("naïve", "数学")


def test_length_that_the_message_asks_for_is_enough():
    def check(count):
        check_length(make_corpus(text_of(["a"] * count), 10), batch=4, bptt=5, trace_examples=2)

    with pytest.raises(OptionError, match=r"has 40 words.*at least 110") as error:
        check(40)
    assert "--batch 4 --bptt 5 --trace-examples 2" in str(error.value)
    check(110)
    with pytest.raises(OptionError):
        check(109)
