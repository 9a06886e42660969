"""The members of the ensemble by name and number. Knows words and bits only; imports nothing that is compiled."""

from __future__ import annotations

from nacz.errors import UsageError

BIAS, HABIT, NGRAM, MATCH, RECALL, BYTES = 1, 2, 4, 8, 16, 32
# Those that change what is said of tokens; bytes changes how a token is said.
TOKEN_MEMBERS = {"bias": BIAS, "habit": HABIT, "ngram": NGRAM, "match": MATCH, "recall": RECALL}
MEMBERS = TOKEN_MEMBERS | {"bytes": BYTES}
ALL_OF_TOKENS = sum(TOKEN_MEMBERS.values())
ALL = sum(MEMBERS.values())


def parse_members(text: str) -> int:
    """Bits of the members that a list like "ngram,match" names; "all" and "none" are lists too. Raises UsageError."""
    if text in ("all", "none"):
        return ALL if text == "all" else 0
    bits = 0
    for name in text.split(","):
        if name not in MEMBERS:
            raise UsageError(f"the ensemble has no member {name!r}: {', '.join(MEMBERS)}, all or none")
        bits |= MEMBERS[name]
    return bits
