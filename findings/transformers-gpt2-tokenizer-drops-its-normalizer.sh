#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3: a GPT-2 tokenizer that is saved and loaded again has other tokens.
#
# GPT2TokenizerFast(tokenizer_object=...) tokenizes as the object does, and save_pretrained writes all of it into tokenizer.json. Loading
# takes the vocabulary, the merges and the special tokens out of that file and builds the rest anew, as GPT-2's own: the normalizer is gone,
# and the pre-tokenizer is ByteLevel without a prefix blank. Nothing warns. AutoTokenizer does the same for a tokenizer.json beside the config
# of a GPT-2 model, which names no class of a tokenizer. Tokenizers saved as PreTrainedTokenizerFast come back as they were.
#
# Seen: a byte-pair tokenizer with a Lowercase normalizer gives "The Cat" the tokens of "the cat". Loaded again it spells the capitals
# byte by byte. The file on disk still names the normalizer. The same with a prefix blank, and with ByteLevel(use_regex=False).
#
# Why it matters: a GPT-2 that was trained on one's own tokenizer is evaluated on other tokens than it has learned, all of them in its vocabulary:
# perplexity rises and no error says why. Save such a tokenizer as PreTrainedTokenizerFast, and always with its tokenizer_config.json.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 || exit 2

cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2TokenizerFast, PreTrainedTokenizerFast

LINES = ["the cat sees twelve fishes", "a dog hears the cat", "my bird feeds the dog"] * 20
TEXT = "The Cat sees  a Dog"
ByteLevel = pre_tokenizers.ByteLevel
KINDS = {
    "ByteLevel alone": (None, ByteLevel(add_prefix_space=False)),
    "Lowercase": (normalizers.Lowercase(), ByteLevel(add_prefix_space=False)),
    "a prefix blank": (None, ByteLevel(add_prefix_space=True)),
    "use_regex=False": (None, ByteLevel(add_prefix_space=False, use_regex=False)),
}


def trained(normalizer, pre_tokenizer):
    made = Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(ByteLevel.alphabet())
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return made


def loaded(folder):
    return AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]


as_described = True
for name, parts in KINDS.items():
    tokenizer, changes = trained(*parts), name != "ByteLevel alone"
    expected, place = tokenizer.encode(TEXT).ids, Path(name)

    wrapped = GPT2TokenizerFast(tokenizer_object=tokenizer)
    wrapped.save_pretrained(place / "gpt2")
    as_described &= wrapped(TEXT)["input_ids"] == expected
    saved = json.loads((place / "gpt2" / "tokenizer.json").read_text())
    as_described &= saved["normalizer"] == json.loads(tokenizer.to_str())["normalizer"]

    GPT2Config(vocab_size=300, bos_token_id=0, eos_token_id=0).save_pretrained(place / "config")
    tokenizer.save(str(place / "config" / "tokenizer.json"))

    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place / "plain")

    found = {kind: loaded(place / kind) for kind in ("gpt2", "config", "plain")}
    print(f"{name}: {len(expected)} tokens; loaded again as", {kind: len(ids) for kind, ids in found.items()})
    as_described &= (found["gpt2"] != expected) == (found["config"] != expected) == changes
    as_described &= found["plain"] == expected

print("GPT2TokenizerFast and a GPT-2 config change the tokens, PreTrainedTokenizerFast does not:", as_described)
sys.exit(not as_described)
PYTHON
