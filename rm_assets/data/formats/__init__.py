"""What a line of a preference file states: its format, its messages, and whether they are valid."""
