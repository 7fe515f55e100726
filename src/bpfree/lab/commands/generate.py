"""Text of a trained run, written to the terminal as it is drawn."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from bpfree.lab.data.text import Vocabulary
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.kept.text import find_text_run, load_text_run
from bpfree.lab.options.generate import GenerateOptions
from bpfree.lab.process.environment import device
from bpfree.lab.tasks.generation import continuation, text_pieces


def generate(options: GenerateOptions, console: Console | None = None) -> str:
    """Continue a prompt.

    Args:
        options: The run, the prompt, and how tokens are drawn.
        console: Where prompt and text are written, piece by piece; None writes nothing.

    Returns:
        The text, without the prompt.

    Raises:
        RunError: There is no such run, or no checkpoint in it.
        SettingsError: The prompt holds what the run's tokenizer does not know.
        DamageError: A file of the run is damaged.
        TrustError: The run has a model of one's own, and nobody has vouched for it.
    """
    if options.name is None:
        raise RunError("Name the folder of a run: bpfree generate runs/NAME --prompt TEXT.")
    kept = load_text_run(find_text_run(Path(options.name).expanduser()), trust=options.trust)
    prompt = prompt_tokens(kept.vocabulary, options.prompt)
    if console is not None and len(prompt) > kept.context:
        console.print(f"(the prompt has {len(prompt)} tokens; the model sees the last {kept.context})")
    model = kept.model.to(device())
    tokens = continuation(model, prompt, kept.context, options.tokens, options.sampling)
    _write(console, options.prompt)
    pieces = list[str]()
    for piece in text_pieces(kept.vocabulary, prompt, tokens):
        pieces.append(piece)
        _write(console, piece)
    _write(console, "\n")
    return "".join(pieces)


def _write(console: Console | None, text: str) -> None:
    if console is not None:
        # As it is: the console would break lines and read brackets as markup.
        console.file.write(text)
        console.file.flush()


def prompt_tokens(vocabulary: Vocabulary, prompt: str) -> torch.Tensor:
    """Return the tokens of a prompt, int64 ``(n,)``; the end of a line for an empty one.

    Raises:
        SettingsError: It holds something that the tokenizer does not know, or it is empty and there is no such end.
    """
    if unknown := vocabulary.unknown(prompt):
        raise SettingsError(
            f"--prompt: the tokenizer of this run does not know {', '.join(map(repr, unknown))}. Leave it out, or "
            "write it in another way."
        )
    tokens = vocabulary.encode_text(prompt)
    if len(tokens):
        return tokens
    if vocabulary.end_of_line is None:
        raise SettingsError("--prompt: give at least one token; the tokenizer of this run has no end of a line.")
    return torch.tensor([vocabulary.end_of_line])
