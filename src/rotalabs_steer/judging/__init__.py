"""Judges, which tell whether an answer shows a behaviour: by words, by a text classifier or by a language model."""
