"""The laboratory: a tiny world of six skills, in which fusion can be seen on two CPU cores."""
