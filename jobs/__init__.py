"""What you submit: one thin module a job, ``python -m jobs.NAME``."""
