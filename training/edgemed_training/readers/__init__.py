"""Readers: one module for each shape in which people hand over questions and answers."""
