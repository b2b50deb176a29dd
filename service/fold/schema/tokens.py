"""Texts as tokens: words in lower case, and pairs of adjacent words.

A word is a run of letters, digits and underscores as Unicode defines them. A character that a later
version of Unicode adds may be a letter in one Python and none in another.
"""

import re
from itertools import chain, islice, pairwise

WORD = re.compile(r"\w+")
MAX_TOKENS = 512
"""Tokens of a value; further words do not count."""


def tokens(text: str) -> list[str]:
    """Return the distinct words of a text, then its distinct pairs, in order of first appearance.

    >>> tokens("Late fee, late fee!")
    ['late', 'fee', 'late fee', 'fee late']
    """
    words = [match[0] for match in islice(WORD.finditer(text.lower()), MAX_TOKENS // 2)]
    pairs = (f"{one} {two}" for one, two in pairwise(words))
    return list(dict.fromkeys(chain(words, pairs)))
