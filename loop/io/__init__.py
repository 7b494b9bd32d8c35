"""Files: crystals in every format that users have, read as what they describe, written so that others read the same."""
