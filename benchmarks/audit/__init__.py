"""How much the audit finds, and what a repair gains."""
