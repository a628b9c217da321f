"""What of a query a router looks at: its words, without what only a machine would add to them.

A suffix that was searched for to move a router's choice (Shafran et al., 2025, Rerouting LLM Routers) is
mostly odd signs, repeated words, or words that hang behind the end of the last sentence. Whoever answers
gets the query as it is.
"""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = frozenset({"Cf", "Co", "Cn", "Cs"})
_RUN = re.compile(r"(\S)\1{7,}")  # longer than any that is written for a reader, rules and tables aside
_REPEATED = re.compile(r"\b(\w{1,40}(?:\W{1,3}\w{1,40}){0,3}?)(?:\W{1,3}\1\b){2,}", re.IGNORECASE)
_END = re.compile(r"(?<=[\w)\]}\"'])[.?!:;](?=\s)")
_ENDED = re.compile(r"[\w)\]}\"'][.?!:]?[.?!:)\]}\"']\s*$")
_SUM = re.compile(r"[-+*/=<>^%()$,.]+")
_ODD = re.compile(r"\\|[!?#~@|<>{}\[\]_]{2}")
_WORDLY = re.compile(r"[A-Za-z]{2,}")
_LINKS = frozenset(
    re.findall(
        "[a-z]+",
        "a an and are as at be but by can do does for from has have how i if in is it me my not of on or our "
        "please so that the their them then there these they this to was we what when where which who why "
        "will with would you your",
    )
)
_LEAST_TAIL, _LINKED, _ODD_SHARE = 3, 0.12, 0.5


def plainly(text: str) -> str:
    """The text as a router reads it.

    Compatible signs are made one (NFKC) and invisible ones left out; a sign or a phrase that is repeated
    over and over stands once; words behind the last sentence that make none are left out. Most texts
    stay as they are; an empty one comes of no text that is not.

    Example:
        >>> plainly("What is 2 + 2? describing similarly revert oppositely prove prove prove")
        'What is 2 + 2?'
        >>> plainly("What is 2 + 2? Please show your work.")
        'What is 2 + 2? Please show your work.'
    """
    found = unicodedata.normalize("NFKC", text)
    found = "".join(sign for sign in found if unicodedata.category(sign) not in _INVISIBLE)
    found = _REPEATED.sub(r"\1", _RUN.sub(r"\1\1\1", found))
    found = _without_tail(found)
    return found if found.strip() else text


def _without_tail(text: str) -> str:
    """Without words behind the last end of a sentence, if they make no sentence: no link between them."""
    ends = [match.end() for match in _END.finditer(text)]
    if not ends:
        return text
    tail = text[ends[-1] :]
    words = tail.split()
    if words and sum(map(_is_odd, words)) >= _ODD_SHARE * len(words):
        return text[: ends[-1]]
    linked = sum(word.strip(",;").lower() in _LINKS for word in words)
    wordly = sum(_WORDLY.search(word) is not None for word in words)
    sentence = _ENDED.search(tail) is not None or "\n" in tail.strip() or linked > _LINKED * len(words)
    return text if sentence or wordly < _LEAST_TAIL else text[: ends[-1]]


def _is_odd(word: str) -> bool:
    """Whether it is neither a word, nor a number, nor a sign of a sum."""
    if _SUM.fullmatch(word):
        return False
    return _ODD.search(word) is not None or not any(sign.isalnum() for sign in word)
