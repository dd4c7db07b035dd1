"""autofit finds the fastest fine-tuning configuration that stays inside a memory budget."""

__version__ = "0.1.0"
