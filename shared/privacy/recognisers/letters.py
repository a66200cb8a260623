"""Letters of all alphabets that have two cases, for classes of patterns. It knows no words."""

#: The alphabets with two cases that names are written in lie below this: Latin, Greek, Cyrillic, Armenian.
_END = 0x2000
_ALL = [chr(code) for code in range(_END)]
#: What stands in `[…]` for a capital, and for a small letter or the accent of one.
UPPER = "A-Z" + "".join(letter for letter in _ALL if letter > "\x7f" and letter.isupper())
LOWER = "a-z\u0300-\u036f" + "".join(letter for letter in _ALL if letter > "\x7f" and letter.islower())
