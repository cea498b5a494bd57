"""Messages of jsonargparse in one readable line, with the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from mmattn.tasks.common.renamed import renamed

KINDS = {"float": "a number", "int": "an integer", "bool": "true or false", "str": "a string", "NoneType": "null"}
KINDS |= {"dict": "a mapping", "list": "a list"}


def readable(message: str, known: Sequence[str], allowed_imports: Sequence[str]) -> str:
    """Rewrite a message of jsonargparse.

    Args:
        message: The message of jsonargparse.
        known: All valid keys.
        allowed_imports: The packages whose classes a configuration may name.
    """
    refused = re.search(r"Importing '([^']+)' is not allowed", message)
    if refused:
        key = re.search(r'key "([\w.]+)"', message)
        where = f"{key[1]}: " if key else ""
        allowed = " and ".join(allowed_imports)
        return f"{where}{refused[1]!r} may not be imported: a configuration names classes of {allowed} only."
    plain = in_words(message)
    if plain is not None:
        return plain
    wrong = re.findall(r"(?:[Oo]ption |[Kk]ey |nrecognized arguments: (?:--)?)['\"]?([\w.]+)", message)
    hint = ""
    if wrong and wrong[0] not in known:  # otherwise its value is invalid
        key = wrong[0]
        if (new := renamed(key)) is not None:
            return f"{key}: this option was renamed to {new} in version 0.2."
        prefixes = [key.rsplit(".", n)[0] if n else key for n in range(key.count(".") + 1)]
        close = [k for k in known if re.search(rf"[._]{re.escape(key)}$", k)]  # epochs: trainer.max_epochs
        close += [m for k in prefixes for m in difflib.get_close_matches(k, known, n=1, cutoff=0.75)]
        hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{message.strip()}{hint}"


def in_words(message: str) -> str | None:
    """A readable form of jsonargparse's message about a value's type; None for other messages."""
    if "typing.Literal" in message:  # names are then expected rather than classes
        message = re.sub(r"\n\s*- Expected a dot import path string: .*", "", message)
    key, found = re.match(r'Parser key "([\w.]+)":\s', message), re.search(r"(?:Got|Given) value: (.*)\s*\Z", message)
    kinds = re.findall(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[([^\]]+)\])", message)
    if key is None or found is None or not kinds or len(kinds) != message.count("Expected a "):
        return None
    choices = [[KINDS.get(kind, kind)] if kind else re.findall(r"[^', ]+", names) for kind, names in kinds]
    words = list(dict.fromkeys(word for some in choices for word in some))  # 16 and '16' are the same choice
    listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{key[1]}: expected {listed}, found {found[1]!r}."
