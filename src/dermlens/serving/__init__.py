"""A page and an API: the only stage that imports FastAPI. `app.py` puts it together, `server.py` runs it."""
