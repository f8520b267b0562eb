"""How the embedded model is made: its data (`dataset.py`), its recipe (`recipe.py`) and the facts it states."""
