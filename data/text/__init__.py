"""Text: tokenizers, sentences, n-grams."""
