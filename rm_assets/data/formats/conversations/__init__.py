"""Conversations as rows hold them: messages, tools, turn markers, and conversations written inside a text."""
