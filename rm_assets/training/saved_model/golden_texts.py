"""The conversations of the golden scores: fixed ones, so that a published model carries nobody's data.

They hold what tokenizers and templates trip over: several turns, a system message, indentation, runs of spaces, other
scripts, emoji, numbers, spaces at the ends, a lone letter, and a long text.
"""

from typing import Any


def _turns(*texts: str, system: str = "") -> list[dict[str, Any]]:
    opening = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(texts)
    return opening + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    _turns("What is 2+2?", "4.", "And twice that?", "8."),
    _turns("Name a river.", "The Danube.", "Where does it end?", "In the Black Sea.", "Thanks!", "You are welcome."),
    _turns("How late is it?", "I have no clock.", system="You are a helpful assistant."),
    _turns("Tell me more.", "About what?", "About owls.", "Owls hunt at night.", system="Be brief."),
    _turns("What is 2+2?", "4."),
    _turns("What is 2+2?", "I would rather not say."),
    _turns("Write a function that adds.", "```python\ndef add(a, b):\n    return a + b\n```"),
    _turns("Show a table.", "| a | b |\n|---|---|\n| 1 | 2 |"),
    _turns("你好，请介绍一下你自己。", "你好！我是一个助手。"),
    _turns("こんにちは", "こんにちは。お元気ですか？"),
    _turns("Как дела?", "Хорошо, спасибо."),
    _turns("كيف حالك؟", "بخير، شكرا."),
    _turns("Say it with emoji.", "👍🏽 👩‍👩‍👧 🇪🇺"),
    _turns("  Spaces   everywhere  ", "Yes,   indeed.\n\n\nThree line ends."),
    _turns("Größe? Façade? naïve?", "Diacritics: é (one sign) and e\u0301 (two)."),
    _turns("A", "B"),
    _turns("Count.", " ".join(map(str, range(1, 41)))),
    _turns("What is 12345 * 6789?", "12345 * 6789 = 83,810,205; roughly 8.38e7."),
    _turns("Is <b>this</b> markup, {{ or }} this?", "It's text: <br/> & {% raw %}."),
    _turns("Tell me a long story.", "Once upon a time there was a fox who counted stars. " * 12),
    _turns("How do I boil an egg?", "Put it in boiling water for seven minutes, then cool it."),
    _turns("Which is heavier?", "A kilogram of lead and one of feathers weigh the same."),
    _turns("Translate 'tree'.", "Baum, arbre, 木."),
    _turns("Give me a haiku.", "An old silent pond\nA frog jumps into the pond\nSplash! Silence again."),
)
