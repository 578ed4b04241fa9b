"""The laboratory: tiny models and a corpus of six skills, for running a fusion on two CPU cores."""
