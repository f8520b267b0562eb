"""Millions of images: any listing in, one Parquet row per image out, resumable."""
