"""The limit on the memory of feedback, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping

from bpfree.errors import FeedbackSizeError
from bpfree.feedback.options import Feedback


def require_room(feedback: Feedback, sizes: Mapping[str, tuple[int, str]], each: int, there: int) -> None:
    """Raise FeedbackSizeError where numbers to be made would take more memory than ``feedback.max_bytes``.

    Args:
        feedback: Has the limit.
        sizes: For each tap the numbers of its matrix, and its shape in words.
        each: The bytes of one number.
        there: The numbers that are there already.
    """
    total = (sum(count for count, _ in sizes.values()) + there) * each
    if feedback.max_bytes is None or total <= feedback.max_bytes:
        return
    largest = sorted(sizes.items(), key=lambda size: -size[1][0])[:5]
    told = ", ".join(f"{name!r} {_size(count * each)} ({shape})" for name, (count, shape) in largest)
    more = f", and {len(sizes) - 5} taps more" if len(sizes) > 5 else ""
    raise FeedbackSizeError(
        f"the feedback matrices would take {_size(total)}, more than {_size(feedback.max_bytes)}, the limit of "
        f"Feedback(max_bytes=): {told}{more}. Take one number a channel for images, Feedback(modes=1); say which axes "
        "number rows where each position has an error of its own (sample_axes=); take the error where it is smaller "
        "(error_at=); or name fewer taps (taps=). Matrices that do not learn need not be kept, "
        "Feedback(stored=False). max_bytes=None lifts the limit."
    )


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**28 else f"{count / 2**20:,.2f} MiB"
