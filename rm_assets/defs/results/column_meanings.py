"""The meaning of each dataset column in one sentence, shown on the page of its asset."""

MEANINGS = {
    # every row
    "source": "The annotation file of the row, relative to the setting annotations.",
    "line": "The line number in that file, from 1.",
    "text": "The line, unchanged.",
    "pair_id": "Hash of the whole pair, the same at all stages: `python -m rm_assets.trace PAIR_ID`.",
    "prompt_key": "Hash of the normalized prompt; pairs with the same prompt are in the same split.",
    "chosen_key": "Hash of the normalized prompt and chosen reply, to find equal and flipped pairs.",
    "rejected_key": "Hash of the normalized prompt and rejected reply.",
    # a pair as messages, or as text
    "prompt": "What both replies answer: messages, or their text rendered by the chat template.",
    "chosen": "The preferred reply, from the end of the prompt.",
    "rejected": "The other reply, from the end of the prompt.",
    "tools": "The tools that the conversation may call, as JSON; null if none.",
    "margin": "How much better the chosen reply is, from the annotation; 0 if not given.",
    "format": "The format of the line.",
    "num_turns": "Number of user messages in the prompt.",
    "subset": "A name from the annotation, by which the report is sliced; empty if not given.",
    "num_annotators": "Number of annotators of this pair; 0 if not given.",
    "num_agreeing": "Number of annotators who prefer the chosen reply.",
    "agreement": "How many annotators agree with the label, such as '2 of 3'; empty if not given.",
    "chosen_control_tokens": "Number of control tokens that the template writes in the chosen conversation.",
    "rejected_control_tokens": "Number of control tokens that the template writes in the rejected conversation.",
    # a pair as token ids
    "chosen_ids": "Token ids of prompt and chosen reply.",
    "rejected_ids": "Token ids of prompt and rejected reply.",
    "prefix_length": "Number of leading tokens that both sides share.",
    "num_dropped_turns": "Number of oldest prompt turns that were dropped to fit max_length.",
    "chosen_input_ids": "Token ids of prompt and chosen reply, padded on the right to the length of the longer side.",
    "rejected_input_ids": "Token ids of prompt and rejected reply, padded likewise.",
    "chosen_attention_mask": "1 for tokens, 0 for padding.",
    "rejected_attention_mask": "1 for tokens, 0 for padding.",
    "chosen_length": "Number of tokens of the chosen side, without padding.",
    "rejected_length": "Number of tokens of the rejected side, without padding.",
    # rejects
    "stage": "The stage that rejected the row.",
    "reason": "The reason, as a fixed code; rejects_by_reason explains it.",
    "detail": "What exactly is wrong, without the row's text.",
    "line_sha256": "SHA-256 of the line.",
    # the published model
    "repository": "The repository on the Hugging Face Hub; a dataset's begins with datasets/.",
    "commit": "The commit that pushed the file.",
}
"""Column name -> one sentence. An asset may override it (`schema_metadata`)."""

UNITS = {
    # a data stage
    "blank_lines": "lines, not counted as rows",
    "bytes_read": "bytes, decompressed",
    "tied_pairs": "pairs of equal score or rank, not used",
    "pairs_over_the_cap": "pairs of rankings, left out by max_pairs_per_prompt",
    "responses_left_out": "responses of rankings, empty or without score and rank",
    "characters": "characters",
    "rewritten_by_template": "pairs of which the chat template changes or leaves out text",
    "rendered_one_by_one": "pairs rendered by Jinja, as the fast renderer does not know their form",
    "shared_prefix_tokens": "tokens that both sides of a pair share",
    "padding_tokens": "tokens",
    # a training
    "num_steps": "optimizer steps",
    "training_seconds": "s",
    "total_seconds": "s, with held-out pairs and saving",
    "peak_learning_rate": "after warm-up",
    "tokens_per_second": "tokens/s",
    "share_saved_by_sharing": "of all tokens, as both sides share the prompt",
    "share_of_padding": "of the computed tokens",
    "num_parameters": "weights",
    "peak_memory_bytes": "bytes",
    "validation_pairs": "pairs",
    "test_pairs": "pairs",
    "golden_conversations": "conversations with scores, to test a server",
    "largest_bfloat16_difference": "log-odds, between their scores in float32 and bfloat16",
    # a report
    "num_prompts": "prompts",
    "mean_chosen_score": "log-odds",
    "std_chosen_score": "log-odds",
    "mean_rejected_score": "log-odds",
    "std_rejected_score": "log-odds",
    "mean_score_margin": "log-odds",
    "tied_share": "of the pairs",
    "temperature": "divides scores, so that probabilities fit",
    "score_length_pearson": "with the length in tokens",
    "score_length_spearman": "with the length in tokens",
    "num_incomplete_lines": "lines left out by a benchmark's rule",
    # a comparison of two models
    "num_pairs": "pairs",
    "prompts_won": "prompts",
    "prompts_lost": "prompts",
    "known_to_champion": "test pairs, left out",
    "unscored_by_champion": "test pairs, left out",
}
"""Name of a figure -> its unit, or the few words that its name lacks; in tables of figures."""
