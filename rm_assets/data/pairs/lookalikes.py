"""Texts as a reader sees them: without invisible characters, and with Latin letters for their look-alikes.

Used for comparisons only: the text of a pair is never changed.
"""

import functools
import re
import unicodedata

from rm_assets.data.pairs.normal_form import normalize

# Default_Ignorable_Code_Point of Unicode 16 (DerivedCoreProperties.txt): soft hyphen, joiners, marks of direction,
# variation selectors, fillers, tags; besides them control characters that are not white space, and annotation marks.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\ufffb\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"
)
_INVISIBLE_BEYOND = re.compile(
    "[\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)  # apart: it is slower

# Letters, and the Latin letters that they look like by confusables.txt of UTS #39: those of alphabets in use, phonetic
# letters and small capitals. Letters that compatibility forms (NFKC) replace are not needed here,
# and Latin letters of some language, such as the dotless i, are not look-alikes.
_PAIRS = (
    ("ЅІЈАВЕКМНОРСТУХЬагеорсухѕіјѡѴѵҮүһҽӀӏԁԌԛԜԝꙇ", "SIJABEKMHOPCTYXbareopcyxsijwVvYyheIldGqWwi"),
    ("ͿΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγηικνορστυωϜϲϳϹϺᴦ", "JABEZHIKMNOPTYXaynikvopotuwFcjCMr"),
    ("ՍՏՕագզհոռսցքօ", "USOwqqhnnugfo"),
    ("ᎠᎡᎢᎥᎩᎪᎫᎬᎳᎷᎻᎽᏀᏂᏃᏏᏒᏔᏕᏙᏚᏞᏟᏢᏦᏧᏳᏴꭵꮁꮃꮓꮩꮪꮯ", "DRTiYAJEWMHYGhZbRWSVSLCPKdGBirwzvsc"),
    ("ⲅⲎⲒⲔⲘⲚⲞⲟⲢⲣⲤⲥⲦⲨⲬⳐ", "rHIKMNOoPpCcTYXL"),
    ("ꓐꓑꓒꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ", "BPdDTGKJCZFMNLSRVHWXYAEIOU"),
    ("ɑɡɪʏᴀʙᴄᴅᴇɢʜᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡᴢꜰꜱ", "agiyabcdeghjklmnoprtuvwzfs"),
)
_LATIN = {look: letter for looks, letters in _PAIRS for look, letter in zip(looks, letters, strict=True)}
# What only the capital of looks like a Latin letter, as texts are compared whatever their case: к like K.
_LATIN = {look.lower(): letter.lower() for look, letter in _LATIN.items()} | _LATIN
_TABLE = str.maketrans(_LATIN)
_OTHER_LETTER = re.compile(
    "[\u0370-\u052f\u0530-\u058f\u13a0-\u13ff\u1c80-\u1c8f\u2c80-\u2cff\ua4d0-\ua4ff\ua640-\ua69f\uab70-\uabbf]"
)
"""Letters of these alphabets, without the Latin one."""

_IS_NEAR = re.compile(
    "[\u0250-\u02af\u0370-\u058f\u13a0-\u13ff\u1c80-\u1dbf\u1f00-\u1fff\u2c80-\u2cff\ua4d0-\ua4ff\ua640-\ua7ff\uab30-\uabbf]"
)
"""All letters of the table, and some others."""


def may_have_lookalikes(text: str) -> bool:
    """Whether a text may hold words that look Latin; never true of Latin or Chinese text."""
    return _IS_NEAR.search(text) is not None


def visible(text: str) -> str:
    """A text in NFKC without invisible characters; white space stays."""
    text = _INVISIBLE.sub("", text)
    return text if text.isascii() else normalize("NFKC", _INVISIBLE_BEYOND.sub("", text))


_LONGEST_KEPT = 64
"""Characters of words whose lookalike is cached: longer ones are rare, and may be megabytes."""


def latin_lookalike(word: str) -> str | None:
    """The Latin word that a word looks like, itself if it is Latin; None if some letter looks like no Latin one.

    For "раypаl" with three Cyrillic letters it is "paypal"; for "жаr" it is None.
    """
    return _kept_lookalike(word) if len(word) <= _LONGEST_KEPT else _lookalike(word)


def _lookalike(word: str) -> str | None:
    if word.isascii():
        return word
    decomposed = unicodedata.normalize("NFD", word)  # ё like ë; a word holds no marks that would have to be sorted
    latin = unicodedata.normalize("NFC", decomposed.translate(_TABLE))
    return None if _OTHER_LETTER.search(latin) else latin


_kept_lookalike = functools.lru_cache(maxsize=4096)(_lookalike)
