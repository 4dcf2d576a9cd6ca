"""What is written beside the weights: golden scores and the model card, and scoring by stock transformers."""
