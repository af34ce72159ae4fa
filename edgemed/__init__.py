"""A medical language model for clinics with an old laptop, no reliable power and no internet."""

__version__ = "0.1.0"
