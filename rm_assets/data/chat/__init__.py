"""From conversations to token ids: the chat template and the tokenizer, and their fast equivalents."""
