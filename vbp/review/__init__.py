"""What people look at afterwards: status, failures, validate, report, and the plan before. No Ray."""
