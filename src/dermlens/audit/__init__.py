"""What is wrong with a data set (`audit.py`), what the findings are (`findings.py`), and the repair (`repair.py`)."""
