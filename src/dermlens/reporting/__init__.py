"""One look for every report and every progress line."""
