"""One small module for each family of models that can be exported, and what they share."""
