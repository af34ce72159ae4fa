"""The full-screen chat, on textual."""
