"""The kinds of models: what they share, and one package each."""
