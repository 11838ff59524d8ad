"""Sentences on each class from a file: what is taken, and what is said of one that does not do."""

from __future__ import annotations

import json

import pytest

from rmadapter.data.sentences import read_sentences, sentence_sets, sentences_hash
from rmadapter.errors import InputError

SENTENCES = {"cat": ["a cat.", "it purrs"], "dog": ["a dog.", "it {barks}"], "cow": ["a cow."]}


def test_sets_hold_one_sentence_of_each_class(tmp_path):
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(SENTENCES))
    found = read_sentences(path)
    assert found == SENTENCES
    # Classes in another order, one twice, and not all of the file's.
    assert sentence_sets(found, ["dog", "cat", "dog"]) == [
        ["a dog.", "a cat.", "a dog."],
        ["it {barks}", "it purrs", "it {barks}"],
    ]


def test_the_hash_is_that_of_the_sentences_in_their_order():
    one = sentences_hash([["a", "b"], ["c", "d"]])
    assert one == sentences_hash((("a", "b"), ("c", "d")))
    assert (
        len({one, sentences_hash([["a", "b"]]), sentences_hash([["c", "d"], ["a", "b"]]), sentences_hash([["ab"]])})
        == 4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"sentences file .*s\.json cannot be read: Expecting value.*; valid: \{\"class name\": "),
        ("{", r"sentences file .*s\.json cannot be read: .*; valid: \{\"class name\": "),
        ('["a"]', r"s\.json is \['a'\]; valid: \{\"class name\": \[\"a sentence\", \.\.\.\], \.\.\.\}"),
        ("{}", r"s\.json names no class; valid: \{\"class name\""),
        ('{"cat": "a cat"}', r"has 'a cat' for class 'cat'; valid: \{\"class name\""),
        ('{"cat": ["a", 3]}', "has 3 among the sentences of class 'cat'; valid"),
        ('{"cat": ["a", " "]}', "has ' ' among the sentences of class 'cat'; valid"),
    ],
)
def test_a_file_of_another_form(tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_sentences(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "cta"], "has none for class 'cta'; did you mean 'cat'.; valid: some for each of the 2 classes"),
        (["cat", "x", "y"], "has none for class 'x' and 1 more; valid: some for each of the 3 classes"),
        (["cat", "cow"], "has 1 for class 'cow', but 2 for 'cat'; valid: as many for each class"),
        (["hen"], "has an empty list for class 'hen'; valid: one sentence or more"),
    ],
)
def test_classes_that_the_sentences_do_not_fit(classes, message):
    with pytest.raises(InputError, match=message):
        sentence_sets({**SENTENCES, "hen": []}, classes)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"sentences file .*none\.json is missing"):
        read_sentences(tmp_path / "none.json")
