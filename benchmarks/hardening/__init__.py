"""What the server does with input that is meant to break it."""
