"""What comes in: image files (`images.py`, `header.py`) and tables of labelled records (`manifest.py`)."""
