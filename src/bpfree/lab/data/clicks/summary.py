"""The summary of a log that was cached, which people are told once."""

from __future__ import annotations

from bpfree.lab.data.clicks.cache import Cache

_LISTED = 10


def summary(cache: Cache) -> str:
    """Return the summary of a cache: rows and click rate by part, identifiers by field, rows that were left out."""
    counts, clicks = cache.counts, cache.clicks
    rows = sum(counts.values())
    lines = [f"{rows:,} rows, {sum(clicks.values()) / rows:.2%} clicks"]
    lines += [f"  {part:10} {count:>13,}, {clicks[part] / count:.2%} clicks" for part, count in counts.items() if count]
    sizes = [f"{field.name} {field.size:,}" for field in cache.fields]
    lines += [f"{sum(field.size for field in cache.fields):,} identifiers: {', '.join(sizes)}"]
    if bad := cache.facts["bad_rows"]:
        lines += [f"{bad:,} rows that cannot be read were left out:"]
        listed = cache.facts["bad_rows_listed"][:_LISTED]
        lines += [f"  {file}, line {line}: {reason}" for file, line, reason in listed]
        lines += ["  ..."] if bad > len(listed) else []
    return "\n".join(lines)
