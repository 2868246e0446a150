"""What differs between kinds of models."""
