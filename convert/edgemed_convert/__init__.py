"""The convert tool: from a fine-tuned model to a checked GGUF pack."""
