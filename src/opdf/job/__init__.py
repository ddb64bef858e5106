"""A run, usable from Python: configuration, data, teacher, student, training, scores, what it leaves on the disk."""
