"""Tokenizers of others' files: whatever they do for other tasks is off, and a file that is none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bpfree.lab.data.text import TextSettings, Vocabulary, load_text
from bpfree.lab.errors import DataError, SettingsError
from support import tiny_text

LINES = tiny_text.lines(300, 0)


def byte_pairs(**options: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return made


def word_pieces() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=80, show_progress=False, special_tokens=special)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def unigrams() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    options = {"unk_token": "<unk>", "special_tokens": ["<unk>"], "show_progress": False}
    made.train_from_iterator(LINES, trainers.UnigramTrainer(vocab_size=60, **options))
    return made


KINDS = {"BPE": byte_pairs, "WordPiece": word_pieces, "Unigram": unigrams}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def saved(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_text_in_the_tokens_of_a_file(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / kind, KINDS[kind]())
    corpus = tiny_text.folder(tmp_path / "corpus")
    text = load_text(corpus, TextSettings(tokenizer=str(folder), context=16))
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [
        token for line in tiny_text.lines(40, 1) for token in plain.encode(line + "\n", add_special_tokens=False).ids
    ]
    assert text.evaluation.tokens[:].tolist() == expected
    assert text.classes == plain.get_vocab_size()
    assert set(text.checksums) == {"train.txt.gz", "valid.txt", "tokenizer.json", "tokens"}
    # WordPiece drops the ends of lines: they are no words that are predicted.
    words = sum(len(line.split()) for line in tiny_text.lines(40, 1))
    assert text.words == words + (0 if kind == "WordPiece" else 40)
    # A file, or the folder that it lies in.
    by_file = load_text(corpus, TextSettings(tokenizer=str(folder / "tokenizer.json"), context=16))
    assert by_file.describe() == text.describe()
    assert str(tmp_path) not in json.dumps(text.describe())


def test_what_is_for_other_tasks_is_off(kind: str, tmp_path: Path) -> None:
    plain, other = Vocabulary(KINDS[kind]()), KINDS[kind]()
    if kind == "Unigram":  # training it again gives other numbers
        other = Tokenizer.from_str(plain.tokenizer.to_str())
    other.enable_truncation(3)
    other.enable_padding(length=64)
    if kind == "BPE":
        other.model.dropout = 0.5
    found = Vocabulary.loaded(saved(tmp_path / kind, other))
    for _ in range(3):
        assert torch.equal(found.encode(LINES[:20]), plain.encode(LINES[:20]))
    assert torch.equal(found.encode_text(LINES[0]), plain.encode_text(LINES[0]))


def test_a_trained_vocabulary_is_loaded_again_with_the_same_tokens(tmp_path: Path) -> None:
    corpus = tiny_text.folder(tmp_path / "corpus")
    trained = load_text(corpus, tiny_text.HOW)
    loaded = load_text(corpus, TextSettings(tokenizer=str(trained.vocabulary.save(tmp_path / "saved")), context=16))
    assert loaded.checksums["tokens"] == trained.checksums["tokens"]
    assert loaded.vocabulary.end_of_line == trained.vocabulary.end_of_line == 279
    assert loaded.words == trained.words


def test_transformers_reads_a_saved_vocabulary(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = Vocabulary.trained(LINES, 280)
    vocabulary.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat sees\n\n <eol> [UNK] 🙂 .\n  it's\n"
    assert theirs(text)["input_ids"] == vocabulary.encode_text(text).tolist()
    assert theirs.decode(theirs(text)["input_ids"]) == text == vocabulary.decode_text(vocabulary.encode_text(text))
    assert len(theirs) == len(vocabulary) == 280


def test_numbers_that_are_left_out_count() -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 7}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert len(Vocabulary(made)) == 8  # one row a number in the model's table


def test_numbers_far_beyond_the_tokens_are_refused(tmp_path: Path) -> None:
    made = json.loads(Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>")).to_str())
    made["model"]["vocab"]["cat"] = 4_000_000_000  # tokenizers would write it with a step for each number between
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match="its 2 tokens have numbers up to 4,000,000,000"):
        Vocabulary.loaded(tmp_path)


def test_a_text_that_the_tokenizer_cannot_encode_is_named(tmp_path: Path) -> None:
    made = Tokenizer(models.WordPiece({"the": 0, "cat": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    corpus = tiny_text.folder(tmp_path / "corpus")
    with pytest.raises(DataError, match=r"cannot encode the text \(.*UNK.*Take one with a token for what it does not"):
        load_text(corpus, TextSettings(tokenizer=str(saved(tmp_path / "a", made)), context=16))


def test_special_tokens_in_a_text_are_tokens(tmp_path: Path) -> None:
    made = byte_pairs()
    made.add_special_tokens([AddedToken("<unk>"), AddedToken("<|endoftext|>")])
    found = Vocabulary.loaded(saved(tmp_path / "a", made))
    tokens = found.encode(["the <unk> cat<|endoftext|>"])
    assert made.token_to_id("<unk>") in tokens
    assert found.decode(tokens) == ["the <unk> cat<|endoftext|>"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "is no tokenizer.json of Hugging Face .*Model missing"),
        (b"[1]", "it is no tokenizer"),
        (b"not json", "is no tokenizer.json of Hugging Face"),
        (
            b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
            "holds no tokens. Save the tokenizer",
        ),
        (b'{"model": {"type": "New", "vocab": {}}}', "is no tokenizer.json of Hugging Face"),
        (b"\xff", "is no tokenizer.json of Hugging Face"),
        (b"", "is no tokenizer.json of Hugging Face"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    corpus = tiny_text.folder(tmp_path / "corpus")
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_text(corpus, TextSettings(tokenizer=str(tmp_path)))


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    corpus = tiny_text.folder(tmp_path / "corpus")

    def refused(place: Path, said: str) -> None:
        with pytest.raises(DataError, match=said):
            load_text(corpus, TextSettings(tokenizer=str(place)))

    refused(tmp_path / "gone", r"--text\.tokenizer .*gone: there is no such file\. Name a tokenizer\.json")
    refused(corpus, r"the folder holds no tokenizer\.json\. Name a")
    (corpus / "merges.txt").touch()
    refused(corpus, r"It holds older files; transformers' AutoTokenizer")


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match=r"--text\.vocabulary 300: the tokens are those of --text\.tokenizer"):
        TextSettings(tokenizer="a", vocabulary=300)
    with pytest.raises(SettingsError, match=r"--text\.tokenizer: it names nothing"):
        TextSettings(tokenizer="")
    with pytest.raises(SettingsError, match=r"--text\.column lines: only a --text\.dataset has columns"):
        TextSettings(column="lines")
