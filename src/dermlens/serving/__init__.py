"""The page and the API: `app.py` puts them together, `server.py` runs them. Only this package imports FastAPI."""
