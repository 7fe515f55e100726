"""The networks and batches that are measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.lab.models import CausalTransformer
from bpfree.lab.models.cnn import CNN

MLP_SPECIFICATION = re.compile(r"(\d+)x(\d+)@(\d+)(?:/(\d+))?")
CNN_SPECIFICATION = re.compile(r"cnn@(\d+)")
BLOCKS_SPECIFICATION = re.compile(r"(\d+)blocks@(\d+)")
GPT2_SPECIFICATION = re.compile(r"gpt2@(\d+)")
IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class MLP:
    """``depth`` blocks of Linear and tanh of one width, a linear output, and a batch.

    Attributes:
        depth: The number of blocks.
        width: The features of every layer and of the input.
        batch: The number of samples.
        classes: The features of the output.
    """

    depth: int
    width: int
    batch: int
    classes: int = 10

    @property
    def name(self) -> str:
        """How tables and files call it."""
        classes = "" if self.classes == 10 else f", {self.classes} classes"
        return f"{self.depth} x {self.width}, batch {self.batch}{classes}"

    @property
    def places(self) -> dict[str, Any]:
        """Where feedback enters: behind every non-linearity."""
        return {}

    def build(self) -> nn.Sequential:
        """The network, with the same weights every time."""
        torch.manual_seed(0)
        blocks = [part for _ in range(self.depth) for part in (nn.Linear(self.width, self.width), nn.Tanh())]
        return nn.Sequential(*blocks, nn.Linear(self.width, self.classes))

    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs and class numbers, the same every time."""
        return _data((self.batch, self.width), self.classes)


@dataclass(frozen=True)
class ConvNet:
    """The lab's convolutional network and a batch of images."""

    batch: int
    classes: int = 10

    @property
    def name(self) -> str:
        """How tables and files call it."""
        return f"3 conv (32-64-64) + 128, {' x '.join(map(str, IMAGE))}, batch {self.batch}"

    @property
    def places(self) -> dict[str, Any]:
        """Where feedback enters: behind every non-linearity."""
        return {}

    def build(self) -> nn.Module:
        """The network, with the same weights every time."""
        torch.manual_seed(0)
        return CNN(IMAGE, self.classes)

    def data(self) -> tuple[Tensor, Tensor]:
        """Images and class numbers, the same every time."""
        return _data((self.batch, *IMAGE), self.classes)


@dataclass(frozen=True)
class Transformer:
    """``blocks`` pre-norm transformer blocks, tapped behind each block, the error below the head.

    Attributes:
        blocks: The number of blocks.
        batch: The number of sequences.
        width: The width of the residual stream.
        tokens: The tokens of a sequence.
        classes: The tokens of the vocabulary.
        heads: Attention heads.
        hidden: The width of the feed-forward network's hidden layer.
    """

    blocks: int
    batch: int
    width: int = 128
    tokens: int = 128
    classes: int = 4000
    heads: int = 4
    hidden: int = 512

    @property
    def name(self) -> str:
        """How tables and files call it."""
        return f"{self.blocks} blocks of {self.width}, {self.batch} x {self.tokens} of {self.classes:,} tokens"

    @property
    def places(self) -> dict[str, Any]:
        """Where feedback enters, as arguments of attach()."""
        return {
            "taps": list(CausalTransformer.suggested_taps(self.blocks, "pre")),
            "error_at": CausalTransformer.suggested_error_at,
        }

    def build(self) -> nn.Module:
        """The network, with the same weights every time."""
        torch.manual_seed(0)
        return CausalTransformer(
            (self.tokens,), self.classes, self.blocks, self.width, self.heads, self.hidden, norm="pre"
        )

    def data(self) -> tuple[Tensor, Tensor]:
        """Tokens and those that follow them, the same every time."""
        return _text(self.batch, self.tokens, self.classes)


@dataclass(frozen=True)
class GPT2:
    """The GPT-2 of Hugging Face's transformers, 6 layers of 256 from a config, with the taps that bpfree suggests."""

    batch: int
    tokens: int = 128
    classes: int = 4000

    @property
    def name(self) -> str:
        """How tables and files call it."""
        return f"GPT-2 of transformers, 6 layers of 256, {self.batch} x {self.tokens} of {self.classes:,} tokens"

    @property
    def places(self) -> dict[str, Any]:
        """Where feedback enters, as arguments of attach()."""
        return {"taps": "blocks"}

    def build(self) -> nn.Module:
        """The network, with the same weights every time; its dropout is off."""
        return _Logits(self)

    def data(self) -> tuple[Tensor, Tensor]:
        """Tokens and those that follow them, the same every time."""
        return _text(self.batch, self.tokens, self.classes)


class _Logits(nn.Module):
    """A GPT-2 that returns its logits alone."""

    def __init__(self, net: GPT2) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds

        super().__init__()
        torch.manual_seed(0)
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=net.classes, n_positions=net.tokens, n_layer=6, n_embd=256, n_head=8, use_cache=False,
                bos_token_id=0, eos_token_id=0, **off,
            )
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


Net = MLP | ConvNet | Transformer | GPT2


def _data(shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(shape), torch.randint(0, classes, shape[:1])


def _text(sequences: int, tokens: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    text = torch.randint(0, vocabulary, (sequences, tokens + 1))
    return text[:, :-1], text[:, 1:]


def net(text: str) -> Net:
    """The network of a command line.

    ``16x2048@256`` (depth, width, batch), ``8x512@64/100`` (classes), ``cnn@64``, ``12blocks@16``
    (sequences), ``gpt2@4``.

    Raises:
        ValueError: ``text`` is none of these.
    """
    if found := MLP_SPECIFICATION.fullmatch(text):
        return MLP(*(int(number) for number in found.groups() if number))
    if found := CNN_SPECIFICATION.fullmatch(text):
        return ConvNet(int(found[1]))
    if found := BLOCKS_SPECIFICATION.fullmatch(text):
        return Transformer(int(found[1]), int(found[2]))
    if found := GPT2_SPECIFICATION.fullmatch(text):
        return GPT2(int(found[1]))
    raise ValueError(f"{text!r} is no network: write 16x2048@256, 8x512@64/100, cnn@64, 12blocks@16 or gpt2@4.")
