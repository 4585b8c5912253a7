"""Separating files of any length: `surf separate`, and the same as an iterator (`streaming.separate_file`)."""
