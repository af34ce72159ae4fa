"""llama.cpp in a process of its own: it aborts or crashes on some files, and the tool must not."""
