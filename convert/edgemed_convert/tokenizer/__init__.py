"""From a model folder's tokenizer files to what the engine needs to make the same tokens."""
