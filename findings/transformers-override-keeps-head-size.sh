#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: a config read with another number of heads, or another width, keeps the size of its old heads
# where the model is a Llama or a Mistral, and does not where it is a Qwen2, an OLMo or a Granite.
#
# AutoConfig.from_pretrained(FILE, num_attention_heads=2) first makes the config of the file, and then sets what was asked for. Llama's
# and Mistral's configs compute head_dim = hidden_size / num_attention_heads when they are made, also where the file has no head_dim,
# and nothing computes it again. The other configs have no head_dim, so their models compute it.
#
# Seen: for a file of width 32 with 4 heads and no head_dim, the same override to 2 heads gives Llama and Mistral two heads of 8 numbers:
# attention is half as wide as the model, and the model has 9,952 weights. With 2 heads in the file it has two heads of 16, and
# 12,000 weights. Override to width 64: heads of 8 instead of 16. Qwen2, OLMo and Granite have the same weights both ways. No warning.
#
# Why it matters: a study over widths or numbers of heads that changes one config by overrides compares smaller attention than it says,
# for some families and not for others. Change the dictionary and make the config from it, LlamaConfig.from_dict({**values, ...}),
# or override head_dim too.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 || exit 2

cd "$folder"
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import json
import sys

from transformers import AutoConfig, AutoModelForCausalLM

VALUES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OVERRIDES = {"num_attention_heads": 2}, {"hidden_size": 64}


def weights(values, **override):
    """The number of weights of the model of a config file, read with overrides."""
    with open("config.json", "w") as file:
        json.dump(values, file)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("config.json", **override))
    return sum(weight.numel() for weight in model.parameters())


found = {}
for kind in ("llama", "mistral", "qwen2", "olmo", "granite"):
    for override in OVERRIDES:
        values = {"model_type": kind, **VALUES}
        in_file, by_override = weights({**values, **override}), weights(values, **override)
        print(f"{kind}, {override}: {in_file} weights if the file says so, {by_override} by the override")
        found.setdefault(kind, []).append(by_override < in_file)
sys.exit(found != {kind: [kind in ("llama", "mistral")] * 2 for kind in found})
PYTHON
