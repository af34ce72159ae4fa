"""The engine: llama.cpp in a child process, behind a small protocol."""
