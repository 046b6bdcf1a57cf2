"""Patterns of sentences that take two readings, such as a clause as a subject.

They find about two thirds of such sentences, and a text without hits can still be unclear. Rewrite the paragraph.
"""

from __future__ import annotations

import re

_AUXILIARY = r"(?:is|are|was|were|be|has|have|had|does|do|did|can|could|may|might|must|will|would|should|shall)"
WORD = re.compile(r"[A-Za-z][\w'-]*")
LONGEST = 28
"""Words of a sentence."""
PATTERNS: dict[str, re.Pattern[str]] = {
    # a question is no clause
    "noun_clause_subject": re.compile(
        r"^(?:What|Whatever|Whoever|Whose|Who|Which|Whether(?! to\b)|How(?! to\b|ever)|Why"
        r"|Where(?!as| possible| applicable| necessary))\b(?!.*\?)"
        r"|^That (?:an?|the|it|they|he|she|we|you|no|nothing|nobody|each|every|all|its|their)\b"
        r"|[;:] (?:what|whoever|that which)\b(?!.*\?)"
    ),
    # but not the short message "Nothing was sent."
    "negative_subject": re.compile(
        r"\b(?:[Nn]obody|[Nn]o one|none|None of|[Nn]o other)\b"
        r"|(?:^(?!Nothing \w+ \w+\.?$)|[,;:(] |\b(?:that|which|where|if|and|but|as|so|than) )(?:[Nn]othing|[Nn]o \w+) "
        rf"(?:\w+s|{_AUXILIARY})\b"
    ),
    "relative_of": re.compile(
        r"\b(?:that|those) (?:of|by|in|at|for|from) |\b(?:of|by|from|after|beside|than) (?:which|whom|whose)\b"
    ),
    "free_relative": re.compile(
        rf"(?<!^)\bwhat (?:it|they|he|she|came|come|cannot|not|no|an?|the|this|that|{_AUXILIARY}|\w+s|\w+ed)\b(?!.*\?)"
    ),
    "is_none": re.compile(rf"\b{_AUXILIARY} none\b|\b(?:is|are|was|were) not there\b|\bof no\b"),
    # two of them, but not "as well as", "as soon as", "as a"
    "as_chain": re.compile(
        r"(?:\bas (?!well\b|soon\b|long\b|far\b|an?\b|the\b|much\b|many\b|part\b)\w+\b.*){2}"
        r"|, as (?:it|they|that|those|one|he|she|if) |\bas (?:was|were|is|are) \w+ed\b"
    ),
    "inversion": re.compile(
        r"^(?:Of|Among|Beside|To whom|By what|Below|Above|Beneath|Behind) [^,]{3,60} "
        r"(?:is|are|was|were|has|have|there|stands?|lies?|go|goes|comes?)\b"
        rf"|\b(?:so|nor) {_AUXILIARY} |^(?:Only|Not) (?:then|there|so|here|when|by|where)\b"
        r"|, (?:it|they|people|one) (?:must|may|can) \w+\.$"
    ),
    "speaking_things": re.compile(
        r"\b(?<!you )(?:says?|said|tells|told|speaks? of|knows|remembers|learns|forgets|bec[ao]mes? of|how far)\b"
    ),
    "rare_words": re.compile(r"\b(?:beside|anew|whoever|there(?:of|in)|by itself|of its own|at all)\b"),
    "semicolons": re.compile(r";.*;|(?:\S+ ){11}.*; .*(?:\S+ ){8}"),
}
NOT_IMPERATIVE = re.compile(
    r"(?:The|An?|All|Each|One|Two|Its|Th(?:is|at|ese|ose)|Wh\w+|How|As|If|In|Of|On|By|For|From|To|At|Not?|Nothing)\b"
    r"|(?!Return|Record|Yield|Say|Check|Note|Raise|Ensure|Assert|Verify|Tell|Show)\w+ (?:of|that|which|whose) "
)
"""First line of a function's docstring without verb and object."""
NAMES = (*PATTERNS, "long", "not_imperative")


def find_patterns(sentence: str, *, is_summary: bool = False) -> list[str]:
    """Return the names of the patterns that the sentence has; a summary is the first sentence of a docstring."""
    text = sentence[:1].upper() + sentence[1:]
    found = [name for name, pattern in PATTERNS.items() if pattern.search(text)]
    if len(WORD.findall(text)) > LONGEST:
        found.append("long")
    if is_summary and NOT_IMPERATIVE.match(sentence):
        found.append("not_imperative")
    return found
