"""`surf report`: runs side by side, as one self-contained page and as Markdown."""
