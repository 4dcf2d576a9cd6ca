"""The built-in sample: annotations, tokenizer, model configuration and training settings."""
