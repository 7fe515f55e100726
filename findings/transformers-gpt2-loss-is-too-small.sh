#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0: the Trainer makes GPT-2's loss and gradients too small, by (L - 1) / L.
#
# The Trainer sums the losses of all predicted tokens and divides by their number. A causal model predicts L - 1 of L labels, so it
# must count those behind the first; it does so for models whose attribute loss_type names the causal loss. loss_type is found in the
# class's name, and GPT2LMHeadModel has none (None: the model warns, and uses the causal loss all the same). So for GPT-2 all L labels
# are counted. LlamaForCausalLM and others whose name says ForCausalLM are right.
#
# Seen: for sequences of L = 4 tokens GPT-2's training loss, gradient norm and eval_loss are 0.75 times those of model(...).loss,
# Llama's 1.00 times.
#
# Why it matters: exp(eval_loss) is not the perplexity but its power (L - 1) / L, which is less; and a gradient has another scale than
# in a loop of one's own: 25 % at 4 tokens, 3 % at 32, 0.1 % at 1024. A comparison of learning rules, of which some are trained by the
# Trainer and others by hand, compares different learning rates (SGD), different clipping and different perplexities.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
        torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 || exit 2

cd "$folder"
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LENGTH, WORDS = 4, 11
TOKENS = torch.arange(8 * LENGTH).view(8, LENGTH) % WORDS
special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def gpt2():
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, **special))


def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, **special))


def by_hand(model):
    """The loss of one batch, the norm of its gradient, and the loss in evaluation: there is no dropout."""
    loss = model.train()(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    return loss.item(), torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item(), loss.item()


def by_trainer(model):
    """The same of the same batch, as the Trainer logs them."""
    arguments = TrainingArguments(
        output_dir="run", per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=1, logging_steps=1, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in TOKENS])
    evaluated = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return first["loss"], first["grad_norm"], evaluated


found = {}
for make in (gpt2, llama):
    hand, trained = by_hand(make()), by_trainer(make())
    found[make.__name__] = [round(there / here, 4) for here, there in zip(hand, trained)]
    print(f"{make.__name__}: loss, gradient norm and eval_loss by hand {hand}, by the Trainer {trained}: {found[make.__name__]} times")
share = (LENGTH - 1) / LENGTH
sys.exit(found != {"gpt2": [share] * 3, "llama": [1.0] * 3})
PYTHON
