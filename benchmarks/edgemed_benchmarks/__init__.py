"""The benchmark tool: from a suite of questions to records and a report."""
