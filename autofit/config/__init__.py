"""What people write and what is recorded: pydantic models and YAML, nothing else."""
