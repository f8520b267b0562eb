"""What is wrong with a data set: findings (`findings.py`), one for each group of images concerned."""
