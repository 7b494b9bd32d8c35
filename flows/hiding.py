"""Keys and passwords out of texts that are kept or shown: those in URLs, and those that the environment holds."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"KEY|TOKEN|PASSW|SECRET|CREDENTIAL", re.IGNORECASE)  # of variables whose values are secret
SHORTEST = 6  # characters of a secret: a shorter value is also a word
IN_URL = re.compile(r"(\w://[^\s/:@'\"]*:)[^\s'\"]+@(?=[^\s@]*)")
HIDDEN = "***"


def hidden(text: str) -> str:
    """The text with `HIDDEN` in place of each secret."""
    values = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return IN_URL.sub(rf"\1{HIDDEN}@", text)
