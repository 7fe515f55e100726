"""The options of ``bpfree generate``."""

from __future__ import annotations

from dataclasses import dataclass

from bpfree.lab.errors import SettingsError
from bpfree.lab.tasks.generation import Sampling


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Write text with the model of a run of bpfree train.

    Args:
        name: The run: the folder that bpfree train wrote to, or its record or checkpoint.
        prompt: The text that is continued; by default the end of a line. Of a prompt that is longer than the model's
            context, the model sees the last tokens.
        tokens: The number of tokens to write.
        temperature: Logits are divided by it: below 1 likely tokens come more often, above 1 less often. 0 takes the
            likeliest token each time.
        top_k: Only so many of the likeliest tokens are drawn from; by default all.
        seed: Determines what is drawn.
        trust: Let a run use a model of your own by the import path in its folder, wherever that lies.
    """

    name: str | None = None
    prompt: str = ""
    tokens: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0
    trust: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise SettingsError(f"--tokens {self.tokens} must be at least 1.")
        _ = self.sampling  # which checks its values

    @property
    def sampling(self) -> Sampling:
        """The way in which tokens are drawn."""
        return Sampling(temperature=self.temperature, top_k=self.top_k, seed=self.seed)
