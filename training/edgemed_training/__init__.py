"""The training tool: from questions and answers to an adapter."""
