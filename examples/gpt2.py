"""A GPT-2 of Hugging Face's transformers, from a config, learns letters by FDFA.

python examples/gpt2.py
"""

import argparse
from pydoc_data.topics import topics

import torch

import bpfree

try:
    from transformers import GPT2Config, GPT2LMHeadModel, logging
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error

logging.set_verbosity_error()
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="40 steps of a smaller model")
options = parser.parse_args()
layers, steps = (3, 40) if options.quick else (4, 300)

text = "\n".join(topics.values())  # Python's own manual, which comes with Python
letters = sorted(set(text))
numbers = torch.tensor([letters.index(letter) for letter in text])
train, held_out = numbers[: -len(numbers) // 10], numbers[-len(numbers) // 10 :]


def batch(of: torch.Tensor, rows: int) -> torch.Tensor:
    """Draw sequences of 32 letters, ``(rows, 32)``."""
    return of[torch.randint(len(of) - 32, (rows, 1)) + torch.arange(32)]


sizes = {"vocab_size": len(letters), "n_positions": 32, "n_layer": layers, "n_embd": 64, "n_head": 4}
# The default of initializer_range, 0.02, is for streams of 768 numbers: with 64, blocks do little.
config = GPT2Config(**sizes, initializer_range=0.1, bos_token_id=0, eos_token_id=0)
for rule in (bpfree.BP(), bpfree.FDFA(beta=0.05), bpfree.DFA(), bpfree.Shallow()):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    attachment = bpfree.attach(model, rule, taps="blocks")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        ids = batch(train, 16)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        ids = batch(held_out, 64 if options.quick else 512)
        loss = model(ids, labels=ids).loss.item()
        written = model.generate(ids[:1, :12], min_new_tokens=20, max_length=32, do_sample=True, pad_token_id=0)[0]
    print(f"{rule!s:16} {loss:.3f} nats a letter; writes {''.join(letters[n] for n in written)!r}", flush=True)
