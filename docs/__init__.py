"""The pages of the documentation site, and what makes it."""
